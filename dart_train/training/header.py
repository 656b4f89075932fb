"""The first lines of a run: what is trained, on what, and where it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoints import step_of
from ..common.environment import bf16_is_emulated
from ..config import Elastic, Recipe
from .data_feed import TrainFeed
from .deepspeed_config import optimizer_sharding
from .fully_sharded import SHARDED
from .row_guard import SKIPPED_ROWS_FILE
from .trainable import count_parameters


def header(feed: TrainFeed, model: Any, resume: Path | None) -> str:
    """model: with its parameters chosen, on any device. resume: the checkpoint to continue from."""
    recipe = feed.recipe
    where = f"resumed from {resume.name}, after step {step_of(resume)}" if resume else "new run"
    lines = {
        "model": recipe.model.path + _quantized(recipe),
        "folder": f"{recipe.train.output_dir} ({where})",
        "trained": _trained(recipe, model),
        "rows": _rows(feed),
        "batch": _batch(feed),
        "reduction": _reduction(recipe),
    }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _quantized(recipe: Recipe) -> str:
    kind = recipe.model.quantization
    return "" if kind == "none" else f" (linear layers of the language model in {kind})"


def run_facts(feed: TrainFeed, model: Any) -> dict[str, Any]:
    """What the recipe alone does not determine, for trackers. model: as for `header`."""
    counts = count_parameters(model)
    return {
        "world_size": feed.ranks.world,
        "effective_batch_size": feed.rows_per_step,
        "steps": feed.steps,
        "rows_per_epoch": None if feed.order is None else len(feed.order),
        "zero_stage": optimizer_sharding(feed.recipe.train, feed.ranks)["stage"],
        "trained_parameters": sum(trained for trained, _ in counts.values()),
        "parameters": sum(total for _, total in counts.values()),
        "trained_parameters_by_part": {name: trained for name, (trained, _) in counts.items()},
    }


def _trained(recipe: Recipe, model: Any) -> str:
    counts = count_parameters(model)
    modes = {name: part.mode for name, part in recipe.parts.named().items()}
    parts = [f"{name} {modes.get(name, '')} {trained:,}" for name, (trained, _) in counts.items() if trained]
    trained, total = (sum(column) for column in zip(*counts.values(), strict=True))
    return f"{trained:,} of {total:,} parameters ({trained / total:.2%}): {', '.join(parts)}"


def _rows(feed: TrainFeed) -> str:
    order, sources = feed.order, len(feed.reader.sources)
    rows = "streamed" if order is None else f"{len(order):,} an epoch"
    if feed.left_out:
        rows += f" ({len(feed.left_out):,} unusable left out, see {SKIPPED_ROWS_FILE})"
    epochs = feed.epoch(feed.steps)
    of = "1 source" if sources == 1 else f"{sources} sources"
    return f"{rows}, {of}, {feed.steps:,} steps" + (f", {epochs:.3g} epochs" if epochs else "")


def _batch(feed: TrainFeed) -> str:
    train, ranks = feed.recipe.train, feed.ranks
    stage = optimizer_sharding(train, ranks)["stage"]
    others: dict[int | str | None, str] = {None: "without DeepSpeed", SHARDED: "FSDP2"}
    engine = others.get(stage, f"DeepSpeed ZeRO-{stage}")
    return (
        f"{feed.rows_per_step} rows a step = {train.per_device_batch_size} x {ranks.world} processes x "
        f"{train.gradient_accumulation_steps} forwards, {precision_text(train.precision)}, {engine}"
    )


def precision_text(precision: str) -> str:
    slow = precision == "bf16" and bf16_is_emulated()
    return f"{precision} (which this CPU emulates: fp32 is faster)" if slow else precision


def _reduction(recipe: Recipe) -> str:
    reduction = recipe.reduction
    stages = [
        f"{each.to_dict()['method']} from layer {each.layer}, keep {each.keep:g}" for each in reduction.reducers()
    ]
    if not stages:
        return "none"
    tower = reduction.tower_stage()
    if tower is not None:
        how = f"keep {tower.keep:g}" if tower.keep is not None else f"equal pixels, tolerance {tower.tolerance:g}"
        stages.insert(0, f"tower from block {tower.layer}, {how}")
    schedule = reduction.schedule
    budgets = (
        f", budgets {', '.join(f'{each:g}' for each in schedule.choices)}" if isinstance(schedule, Elastic) else ""
    )
    return f"{'; then '.join(stages)} ({schedule.kind} schedule{budgets})"
