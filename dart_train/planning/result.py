"""What a plan holds: plain numbers, so that it can be written down and laid beside what happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .report import beside_text, plan_text

VERSION = 1


@dataclass(frozen=True)
class Cost:
    """One budget. Tokens: means of a sample; FLOPs and seconds (None: not timed): of an optimizer step on one rank;
    memory: bytes of a rank, at most."""

    label: str
    share: float  # of the steps
    visual_kept: float
    tokens: float  # real ones behind the reduction
    padded: float  # places of a sample in the first and
    padded_reduced: float  # in the last decoder layer
    flops: Mapping[str, float]
    seconds: Mapping[str, float] | None
    memory: Mapping[str, int]

    @property
    def step_seconds(self) -> float | None:
        return None if self.seconds is None else sum(self.seconds.values())

    @property
    def peak_bytes(self) -> int:
        return sum(self.memory.values())


@dataclass(frozen=True)
class Plan:
    """full: no reduction. budgets: what the schedule draws. recipe: their mean by share, and their largest memory.
    breaks_even: the largest share of kept visual tokens at which the reduction pays; None: none does, or not timed.
    """

    name: str
    full: Cost
    budgets: tuple[Cost, ...]
    recipe: Cost
    breaks_even: float | None
    data: Mapping[str, Any]
    parameters: Mapping[str, Mapping[str, int]]
    run: Mapping[str, Any]
    device: Mapping[str, str | int]
    timings: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]

    @property
    def speedup(self) -> float | None:
        """Full tokens against the recipe; above 1 it pays."""
        before, after = self.full.step_seconds, self.recipe.step_seconds
        return None if before is None or after is None else before / after

    @property
    def bound(self) -> float:
        """The speed-up that the FLOPs allow."""
        return sum(self.full.flops.values()) / sum(self.recipe.flops.values())

    def expected(self) -> dict[str, float]:
        """The figures that a run can measure, under the names that `beside` takes."""
        samples = self.run["samples_per_step_and_rank"]
        found = {
            "visual_tokens_per_sample": self.data["visual_tokens"],
            "visual_tokens_kept_per_sample": self.recipe.visual_kept,
            "share_of_visual_tokens_kept": self.recipe.visual_kept / (self.data["visual_tokens"] or 1),
            "tokens_per_sample": self.data["tokens"],
            "peak_memory_bytes": float(self.recipe.peak_bytes),
        }
        seconds = self.recipe.step_seconds
        if seconds is not None:
            found |= {"step_seconds": seconds, "samples_per_second": samples * self.run["ranks"] / seconds}
        return found

    def compared(self, actual: Mapping[str, float]) -> dict[str, dict[str, float | None]]:
        """Every figure that was predicted or measured; ratio: actual / predicted."""
        expected, found = self.expected(), dict[str, dict[str, float | None]]()
        for name in [*expected, *(name for name in actual if name not in expected)]:
            predicted, measured = expected.get(name), actual.get(name)
            ratio = measured / predicted if predicted and measured is not None else None
            found[name] = {"predicted": predicted, "actual": measured, "ratio": ratio}
        return found

    def beside(self, actual: Mapping[str, float]) -> str:
        """The prediction next to what happened."""
        return beside_text(self.compared(actual))

    def to_dict(self) -> dict[str, Any]:
        told = {"speedup": self.speedup, "bound": self.bound, "expected": self.expected()}
        return {"version": VERSION, **asdict(self), **told}

    def __str__(self) -> str:
        return plan_text(self)
