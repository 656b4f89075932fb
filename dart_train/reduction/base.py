"""The interface of all methods: a small dataclass that is its own configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .batch_layout import Per
from .budget import Keep, check_keep, split_budget, tokens_to_keep
from .context import SelectionContext
from .token_counts import HasGroupSizes, count_kept_by_stage

# Former names of what a method may override. Both names work in either direction until the next release.
FORMER_NAMES = {"needs": "requires", "required": "required_inputs", "content": "merge_targets"}


@dataclass(frozen=True, kw_only=True)
class Reducer:
    """Keeps some visual tokens of each group. A new method overrides `select`, and names in `requires` what it reads.

    keep: a number of tokens, or a ratio of the original ones (1.0: all).
    layer: K, the first decoder layer that runs on the short sequence; 0 is before the language model.
    per: the budget is that of a sample, or of each image.
    merge: what becomes of dropped tokens: nothing, or each is averaged into the nearest kept one.
    positions: of the kept tokens in the rotary embedding: their original ones, or, at layer 0, the numbers 0, 1, 2, ...
        as if the dropped tokens had never been there.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[frozenset[str]] = frozenset()  # of: keys, values, attention, own_attention, grid, scorer
    needs: ClassVar[frozenset[str]] = requires

    keep: Keep = 1.0
    layer: int = 2
    per: Per = "sample"
    merge: Literal["none", "nearest"] = "none"
    positions: Literal["original", "compact"] = "original"

    def __init_subclass__(cls, **options: Any) -> None:
        """A subclass may define either name of FORMER_NAMES; the other one then means the same."""
        super().__init_subclass__(**options)
        for former, name in FORMER_NAMES.items():
            owner = next(base for base in cls.__mro__ if former in vars(base) or name in vars(base))
            value = vars(owner)[name if name in vars(owner) else former]
            if not (former in vars(owner) and name in vars(owner) and vars(owner)[former] is value):
                setattr(cls, former, value)
                setattr(cls, name, value)

    def __post_init__(self) -> None:
        problems = [problem for problem in self.problems() if problem]
        if problems:
            raise ValueError(f"{type(self).__name__}: " + "; ".join(problems))

    def problems(self) -> list[str | None]:
        """Everything that is wrong with the configuration; subclasses add their own."""
        return [
            check_keep(self.keep),
            check_int_at_least("layer", self.layer, 0),
            check_choice("per", self.per, ("sample", "image")),
            check_choice("merge", self.merge, ("none", "nearest")),
            check_choice("positions", self.positions, ("original", "compact")),
            self._check_positions(),
        ]

    def _check_positions(self) -> str | None:
        if self.positions != "compact" or self.layer == 0:
            return None
        return (
            f"positions='compact' at layer={self.layer}: layers before it have the original positions, in the same "
            "sequence and cache; expected layer=0, or positions='original'"
        )

    def required_inputs(self) -> frozenset[str]:
        """What this configuration needs to see; the engine computes nothing else."""
        return self.requires

    def select(self, context: SelectionContext) -> Tensor:
        """keep [R, N] bool inside context.valid, exactly `count` of each group."""
        raise NotImplementedError(f"{type(self).__name__} must select tokens: define select(context)")

    def make_scorer(self, width: int) -> torch.nn.Module:
        """A new scorer for a language model of this width; for methods that require one."""
        raise NotImplementedError(
            f"{type(self).__name__} requires a scorer and must make it: define make_scorer(width)"
        )

    def count(self, size: int, budget: int, prompt: int) -> int:
        """How many of a group's tokens are kept, known before the selection: lengths need no synchronisation."""
        return min(size, budget)

    def merge_targets(self, context: SelectionContext, keep: Tensor) -> Tensor | None:
        """[R, N] long: the kept token that each token is merged into; None: dropped tokens are lost."""
        return nearest_kept_index(context, keep, max(self.counts(context.groups))) if self.merge == "nearest" else None

    required, content = required_inputs, merge_targets  # the former names

    def budgets(self, groups: HasGroupSizes) -> list[int]:
        """The budget of each group. A ratio is one of the original tokens; a number is shared by the groups of a
        sample (turns) in proportion to what is left of them, so that a later stage meets it exactly too."""
        sizes = groups.original if isinstance(self.keep, float) else groups.sizes
        if self.per == "image":
            return [tokens_to_keep(self.keep, size) for size in sizes]
        budgets = [0] * len(sizes)
        for row in dict.fromkeys(groups.row_of):
            mine = [r for r, owner in enumerate(groups.row_of) if owner == row]
            for r, part in zip(mine, split_budget(self.keep, [sizes[r] for r in mine]), strict=True):
                budgets[r] = part
        return budgets

    def counts(self, groups: HasGroupSizes) -> list[int]:
        """What each group will keep."""
        plan = zip(groups.sizes, self.budgets(groups), groups.prompt_sizes, strict=True)
        return [self.count(size, budget, prompt) for size, budget, prompt in plan]

    def kept_tokens(
        self, images: Sequence[int], turns: Sequence[int] | None = None, text_after: Sequence[int] | None = None
    ) -> int:
        """Tokens kept of a sample whose images have so many tokens each: for plans and checks, without a model
        (see `count_kept_by_stage`)."""
        return count_kept_by_stage([self], images, turns, text_after)[-1]

    def to_dict(self) -> dict[str, Any]:
        """What `from_config` makes this reducer of. A class of another package is named by its module, even
        where it inherits the name of one of ours."""
        cls = type(self)
        ours = cls.__module__.startswith(f"{__package__}.")
        return {"method": cls.name if ours else f"{cls.__module__}:{cls.__qualname__}", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class ScoreReducer(Reducer):
    """Keeps the highest of `score`."""

    def score(self, context: SelectionContext) -> Tensor:
        """[R, N]: higher is kept."""
        raise NotImplementedError(f"{type(self).__name__} must score tokens: define score(context)")

    def select(self, context: SelectionContext) -> Tensor:
        return topk_mask(self.score(context), context.valid, context.budget)


def topk_mask(score: Tensor, valid: Tensor, budget: Tensor) -> Tensor:
    """The `budget` [R] highest of score [R, N] among valid ones, as a mask; ties go to the earlier token."""
    order = topk_indices_stable(score, valid, score.shape[1])
    rank = torch.empty_like(order).scatter_(1, order, _places(order))
    return (rank < budget[:, None]) & valid


def topk_indices_stable(score: Tensor, among: Tensor, number: int) -> Tensor:
    """[R, number] places of the highest scores, the earlier of equal ones first; after the last of `among`
    come others, not to be used. (`topk` breaks ties by the width of the batch.)"""
    order = torch.argsort(score.masked_fill(~among, -torch.inf), dim=1, descending=True, stable=True)
    return order[:, :number]


def _places(order: Tensor) -> Tensor:
    return torch.arange(order.shape[1], device=order.device).expand_as(order)


def nearest_kept_index(context: SelectionContext, keep: Tensor, most: int) -> Tensor:
    """[R, N] long: for each token the kept one of highest cosine similarity (a kept token: itself), where no
    group keeps more than `most`."""
    kept = torch.argsort(keep.logical_not().to(torch.uint8), dim=1, stable=True)[:, : max(1, most)]
    similarity = context.cosine(context.groups.slots.gather(1, kept))
    nearest = similarity.masked_fill(~keep.gather(1, kept)[..., None], -torch.inf).argmax(1)
    return torch.where(keep, _places(keep), kept.gather(1, nearest))


def check_int_at_least(name: str, value: object, least: int) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return None
    return f"{name}={value!r}: expected a whole number >= {least}"


def check_choice(name: str, value: object, choices: Sequence[str]) -> str | None:
    return None if value in choices else f"{name}={value!r}: expected one of {', '.join(choices)}"


def check_unit_interval(name: str, value: object) -> str | None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return None if ok else f"{name}={value!r}: expected a number in [0, 1]"
