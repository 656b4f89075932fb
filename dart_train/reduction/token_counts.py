"""What a reduction will keep of a sample, before there is a model: for plans, checks, and grouping by length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

from .batch_layout import Per


class HasGroupSizes(Protocol):
    """All that budgets depend on, one entry a pool; `TokenGroups` has it, and `GroupSizes` has nothing else."""

    @property
    def row_of(self) -> tuple[int, ...]: ...
    @property
    def sizes(self) -> tuple[int, ...]: ...
    @property
    def original(self) -> tuple[int, ...]: ...
    @property
    def prompt_sizes(self) -> tuple[int, ...]: ...


class HasCounts(Protocol):
    @property
    def per(self) -> Per: ...
    def counts(self, pools: HasGroupSizes) -> list[int]: ...


@dataclass(frozen=True)
class GroupSizes:
    """The pools of one sample."""

    row_of: tuple[int, ...]
    sizes: tuple[int, ...]
    original: tuple[int, ...]
    prompt_sizes: tuple[int, ...]


ASSUMED_PROMPT_TOKENS = 64  # tokens of text behind a picture, where nobody counted


def count_kept_by_stage(
    stages: Sequence[HasCounts],
    pictures: Sequence[int],
    turns: Sequence[int] | None = None,
    behind: Sequence[int] | None = None,
) -> list[int]:
    """Visual tokens of one sample after each stage, by the rules that choose them.

    pictures: tokens of each; turns: the same number for pictures that the same answer follows (default: one turn);
    behind: tokens of text between each picture and that answer.
    """
    if not stages or not pictures:
        return [0] * len(stages)
    pools = _pools(
        pictures, turns or [0] * len(pictures), behind or [ASSUMED_PROMPT_TOKENS] * len(pictures), stages[0].per
    )
    kept = []
    for stage in stages:
        pools = replace(pools, sizes=tuple(stage.counts(pools)))
        kept.append(sum(pools.sizes))
    return kept


def _pools(pictures: Sequence[int], turns: Sequence[int], behind: Sequence[int], per: Per) -> GroupSizes:
    """A pool's prompt is behind its last picture, or else behind its first, or else anywhere (see `layout`)."""
    groups = [[i] for i in range(len(pictures))]
    if per == "sample":
        groups = [list(group) for _, group in groupby(range(len(pictures)), key=lambda i: turns[i])]
    sizes = tuple(sum(pictures[i] for i in group) for group in groups)
    prompts = tuple(behind[group[-1]] or behind[group[0]] or ASSUMED_PROMPT_TOKENS for group in groups)
    return GroupSizes((0,) * len(groups), sizes, sizes, prompts)
