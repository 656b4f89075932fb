"""The first lines of a run: what is trained, on what, and where it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import Elastic
from .deepspeed_config import optimizer_sharding
from .trainable import count_parameters

if TYPE_CHECKING:
    from .run import PreparedRun


def header(prepared: PreparedRun) -> str:
    recipe = prepared.recipe
    where = f"resumed from {prepared.resume.name}, after step {prepared.start_step}" if prepared.resume else "new run"
    lines = {
        "model": recipe.model.path,
        "folder": f"{recipe.train.output_dir} ({where})",
        "trained": _trained(prepared),
        "rows": _rows(prepared),
        "batch": _batch(prepared),
        "reduction": _reduction(prepared),
    }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _trained(prepared: PreparedRun) -> str:
    counts = count_parameters(prepared.meta_model)
    modes = {name: part.mode for name, part in prepared.recipe.parts.named().items()}
    parts = [f"{name} {modes.get(name, '')} {trained:,}" for name, (trained, _) in counts.items() if trained]
    trained, total = (sum(column) for column in zip(*counts.values(), strict=True))
    return f"{trained:,} of {total:,} parameters ({trained / total:.2%}): {', '.join(parts)}"


def _rows(prepared: PreparedRun) -> str:
    order, sources = prepared.feed.order, len(prepared.feed.reader.sources)
    rows = "streamed" if order is None else f"{len(order):,} an epoch"
    epochs = prepared.feed.epoch(prepared.feed.steps)
    return f"{rows}, {sources} sources, {prepared.feed.steps:,} steps" + (f", {epochs:.3g} epochs" if epochs else "")


def _batch(prepared: PreparedRun) -> str:
    train, ranks = prepared.recipe.train, prepared.ranks
    stage = optimizer_sharding(train, ranks)["stage"]
    engine = "without DeepSpeed" if stage is None else f"DeepSpeed ZeRO-{stage}"
    return (
        f"{prepared.feed.rows_per_step} rows a step = {train.per_device_batch_size} x {ranks.world} processes x "
        f"{train.gradient_accumulation_steps} forwards, {train.precision}, {engine}"
    )


def _reduction(prepared: PreparedRun) -> str:
    reduction = prepared.recipe.reduction
    stages = [
        f"{each.to_dict()['method']} from layer {each.layer}, keep {each.keep:g}" for each in reduction.reducers()
    ]
    if not stages:
        return "none"
    schedule = reduction.schedule
    budgets = (
        f", budgets {', '.join(f'{each:g}' for each in schedule.choices)}" if isinstance(schedule, Elastic) else ""
    )
    return f"{'; then '.join(stages)} ({schedule.kind} schedule{budgets})"
