"""`--dry-run`: what would be trained, told without a weight being read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..common.distributed import RankInfo
from ..config import Elastic, Recipe
from ..data.dataset import RowDataset
from ..models.structure import find_parts
from ..reduction.schedule import budget_at_step
from .run import Prepared, prepare
from .trainable import counts

_SAMPLED = 64  # rows that token counts are taken from


@dataclass(frozen=True)
class Tokens:
    """Means over the sampled rows."""

    rows: int
    text: float
    visual: float
    supervised: float


def describe(recipe: Recipe) -> str:
    prepared = prepare(recipe, RankInfo.read())
    tokens = sample_tokens(prepared)
    sections = [recipe.to_yaml().rstrip(), _parameters(prepared.skeleton), _steps(prepared)]
    sections += [_tokens(tokens), _cost(prepared, tokens)] if tokens else []
    return "\n\n".join(sections)


def sample_tokens(prepared: Prepared) -> Tokens | None:
    """None where the rows are streamed."""
    if prepared.feed.order is None:
        return None
    rows = RowDataset(prepared.feed.reader)
    numbers = random.Random(0).sample(range(len(rows)), min(_SAMPLED, len(rows)))
    ids = set(find_parts(prepared.skeleton).visual_ids)
    found = [_count(rows[number], ids) for number in numbers]
    read = [each for each in found if each is not None]
    if not read:
        raise ValueError("data.train: none of the sampled rows can be used; look: python -m dart_train data check")
    text, visual, supervised = (sum(column) / len(read) for column in zip(*read, strict=True))
    return Tokens(len(read), text, visual, supervised)


def _count(row: Any, ids: set[int]) -> tuple[int, int, int] | None:
    features = getattr(row, "features", None)  # a skipped row has none
    if features is None:
        return None
    visual = sum(int((features["input_ids"] == i).sum()) for i in ids)
    return features["input_ids"].numel() - visual, visual, int((features["labels"] != -100).sum())


def _parameters(model: Any) -> str:
    lines = ["parameters      trained            all"]
    found = counts(model)
    found["all"] = (sum(t for t, _ in found.values()), sum(a for _, a in found.values()))
    lines += [f"  {name:9} {trained:>14,} {whole:>14,}" for name, (trained, whole) in found.items()]
    return "\n".join(lines)


def _steps(prepared: Prepared) -> str:
    feed, start = prepared.feed, prepared.start_step
    rows = "streamed" if feed.order is None else f"{len(feed.order):,} rows an epoch"
    line = f"steps: {feed.steps:,} of {feed.rows_per_step} rows ({rows}, {prepared.ranks.world} processes)"
    return line + (f", going on behind step {start:,}" if start else "")


def _tokens(tokens: Tokens) -> str:
    whole = f"{tokens.text:.0f} of text and {tokens.visual:.0f} visual, {tokens.supervised:.0f} supervised"
    return f"tokens of a row, mean of {tokens.rows}: {whole}"


def _cost(prepared: Prepared, tokens: Tokens) -> str:
    """Multiplications of the decoder's layers, against the same training at full tokens."""
    shares = [_share(prepared, tokens, keep) for keep in _budgets(prepared)]
    mean = sum(shares) / len(shares)
    teaching = " with a teacher's forward besides," if prepared.recipe.distill.enabled else ""
    return f"predicted cost of the language model's layers:{teaching} {mean:.0%} of training at full tokens"


def _budgets(prepared: Prepared) -> Sequence[Any]:
    recipe, steps = prepared.recipe, prepared.feed.steps
    reducers = recipe.reduction.reducers()
    if not reducers:
        return [None]
    schedule, served = recipe.reduction.schedule, reducers[-1].keep
    if isinstance(schedule, Elastic):
        return schedule.choices
    at = [step * steps // 20 for step in range(20)]
    return [budget_at_step(schedule, served, step, steps, recipe.train.seed) for step in at]


def _share(prepared: Prepared, tokens: Tokens, keep: Any) -> float:
    """Layers before the reduction see all tokens, those behind it what is kept."""
    parts, full = find_parts(prepared.skeleton), tokens.text + tokens.visual
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
