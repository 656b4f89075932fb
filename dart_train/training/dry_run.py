"""`--dry-run`: what would be trained, without reading a weight."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..common.distributed import RankInfo
from ..config import Elastic, Recipe
from ..data.dataset import RowDataset
from ..models.structure import find_parts
from ..reduction.batch_layout import IGNORED
from ..reduction.schedule import budget_at_step
from .run import PreparedRun, prepare
from .trainable import count_parameters

_SAMPLED_ROWS = 64  # for token counts


@dataclass(frozen=True)
class MeanTokens:
    """Means over the sampled rows."""

    rows: int
    text: float
    visual: float
    supervised: float


def describe(recipe: Recipe) -> str:
    prepared = prepare(recipe, RankInfo.read())
    tokens = sample_tokens(prepared)
    sections = [recipe.to_yaml().rstrip(), _parameters(prepared.meta_model), _steps(prepared)]
    sections += [_tokens(tokens), _cost(prepared, tokens)] if tokens else []
    return "\n\n".join(sections)


def sample_tokens(prepared: PreparedRun) -> MeanTokens | None:
    """None: the rows are streamed."""
    if prepared.feed.order is None:
        return None
    rows = RowDataset(prepared.feed.reader)
    numbers = random.Random(0).sample(range(len(rows)), min(_SAMPLED_ROWS, len(rows)))
    ids = set(find_parts(prepared.meta_model).visual_ids)
    found = [_count(rows[number], ids) for number in numbers]
    read = [each for each in found if each is not None]
    if not read:
        raise ValueError(
            "data.train: none of the sampled rows can be used; see: python -m dart_train data check RECIPE"
        )
    text, visual, supervised = (sum(column) / len(read) for column in zip(*read, strict=True))
    return MeanTokens(len(read), text, visual, supervised)


def _count(row: Any, ids: set[int]) -> tuple[int, int, int] | None:
    features = getattr(row, "features", None)
    if features is None:  # a skipped row
        return None
    visual = sum(int((features["input_ids"] == i).sum()) for i in ids)
    return features["input_ids"].numel() - visual, visual, int((features["labels"] != IGNORED).sum())


def _parameters(model: Any) -> str:
    lines = ["parameters      trained            all"]
    found = count_parameters(model)
    found["all"] = (sum(t for t, _ in found.values()), sum(a for _, a in found.values()))
    lines += [f"  {name:9} {trained:>14,} {total:>14,}" for name, (trained, total) in found.items()]
    return "\n".join(lines)


def _steps(prepared: PreparedRun) -> str:
    feed, start = prepared.feed, prepared.start_step
    rows = "streamed" if feed.order is None else f"{len(feed.order):,} rows an epoch"
    line = f"steps: {feed.steps:,} of {feed.rows_per_step} rows ({rows}, {prepared.ranks.world} processes)"
    return line + (f", resuming after step {start:,}" if start else "")


def _tokens(tokens: MeanTokens) -> str:
    return (
        f"tokens of a row, mean of {tokens.rows}: {tokens.text:.0f} of text and {tokens.visual:.0f} visual, "
        f"{tokens.supervised:.0f} supervised"
    )


def _cost(prepared: PreparedRun, tokens: MeanTokens) -> str:
    """FLOPs of the decoder's layers, relative to the same training at full tokens."""
    shares = [_share(prepared, tokens, keep) for keep in _budgets(prepared)]
    mean = sum(shares) / len(shares)
    teacher = " (the teacher's forward not included)" if prepared.recipe.runs_teacher else ""
    return f"predicted cost of the language model's layers: {mean:.0%} of training at full tokens{teacher}"


def _budgets(prepared: PreparedRun) -> Sequence[Any]:
    recipe, steps = prepared.recipe, prepared.feed.steps
    reducers = recipe.reduction.reducers()
    if not reducers:
        return [None]
    schedule, served = recipe.reduction.schedule, reducers[-1].keep
    if isinstance(schedule, Elastic):
        return schedule.choices
    at = [step * steps // 20 for step in range(20)]
    return [budget_at_step(schedule, served, step, steps, recipe.train.seed) for step in at]


def _share(prepared: PreparedRun, tokens: MeanTokens, keep: Any) -> float:
    """Layers before the reduction have all tokens, those after it the kept ones."""
    parts, full = find_parts(prepared.meta_model), tokens.text + tokens.visual
    reducers = prepared.recipe.reduction.reducers()
    width, total, length = parts.text_config.hidden_size, 0.0, full
    stages = [*reducers[:-1], replace(reducers[-1], keep=keep)] if reducers else []
    for layer in range(len(parts.layers)):
        for stage in stages:
            if stage.layer == layer:
                length = tokens.text + stage.kept_tokens([max(1, round(tokens.visual))])
        total += _layer(length, width, parts.text_config)
    return total / (len(parts.layers) * _layer(full, width, parts.text_config))


def _layer(length: float, width: int, config: Any) -> float:
    linear = length * (4 * width * width + 3 * width * config.intermediate_size)
    return linear + 2 * length * length * width
