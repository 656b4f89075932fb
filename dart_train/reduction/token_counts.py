"""What a reduction will keep of a sample, computed without a model: for plans, checks, and grouping by length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

from .batch_layout import Per


class HasGroupSizes(Protocol):
    """All that budgets depend on, one entry a group; `TokenGroups` has it, and `GroupSizes` has nothing else."""

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
    def counts(self, groups: HasGroupSizes) -> list[int]: ...


@dataclass(frozen=True)
class GroupSizes:
    """The groups of one sample."""

    row_of: tuple[int, ...]
    sizes: tuple[int, ...]
    original: tuple[int, ...]
    prompt_sizes: tuple[int, ...]


ASSUMED_PROMPT_TOKENS = 64  # tokens of text after an image, where they are not known


def count_kept_by_stage(
    stages: Sequence[HasCounts],
    images: Sequence[int],
    turns: Sequence[int] | None = None,
    text_after: Sequence[int] | None = None,
) -> list[int]:
    """Visual tokens of one sample after each stage, by the counts of each method.

    images: tokens of each; turns: the same number for images that the same answer follows (default: one turn);
    text_after: tokens of text between each image and that answer.
    """
    if not stages or not images:
        return [0] * len(stages)
    sizes = _groups_of_sample(
        images, turns or [0] * len(images), text_after or [ASSUMED_PROMPT_TOKENS] * len(images), stages[0].per
    )
    kept = []
    for stage in stages:
        sizes = replace(sizes, sizes=tuple(stage.counts(sizes)))
        kept.append(sum(sizes.sizes))
    return kept


def _groups_of_sample(images: Sequence[int], turns: Sequence[int], text_after: Sequence[int], per: Per) -> GroupSizes:
    """A group's prompt is the text after its last image, else after its first, else anywhere (see `batch_layout`)."""
    groups = [[i] for i in range(len(images))]
    if per == "sample":
        groups = [list(group) for _, group in groupby(range(len(images)), key=lambda i: turns[i])]
    sizes = tuple(sum(images[i] for i in group) for group in groups)
    prompts = tuple(text_after[group[-1]] or text_after[group[0]] or ASSUMED_PROMPT_TOKENS for group in groups)
    return GroupSizes((0,) * len(groups), sizes, sizes, prompts)
