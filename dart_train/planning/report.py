"""What a plan holds, as numbers (plan.json), as text, and compared with what a run measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..common.io import read_jsonl
from ..common.tables import aligned_table

VERSION = 1
GIB = 1 << 30
_TIMES = ((3600.0, "hours"), (60.0, "minutes"), (0.0, "seconds"))
_COMPUTED = "computed from shapes: tokens, FLOPs, memory, and the sums of what was timed over layers and micro-batches"
_NOT_COUNTED = "not counted: loading of data, communication between ranks, validation and saving, DeepSpeed's buffers"


@dataclass(frozen=True)
class BudgetCost:
    """One budget. Tokens: means of a sample; FLOPs and seconds (None: not timed): of an optimizer step on one rank;
    memory: peak bytes of a rank."""

    label: str
    share: float  # of the steps
    visual_kept: float
    tokens: float  # after the reduction, without padding
    padded: float  # positions of a sample, padding included, in the first decoder layer
    padded_reduced: float  # and in the last one
    flops: Mapping[str, float]
    seconds: Mapping[str, float] | None
    memory: Mapping[str, int]

    @property
    def step_seconds(self) -> float | None:
        return None if self.seconds is None else sum(self.seconds.values())

    @property
    def step_flops(self) -> float:
        return sum(self.flops.values())

    @property
    def peak_bytes(self) -> int:
        return sum(self.memory.values())


@dataclass(frozen=True)
class Plan:
    """full: no reduction. budgets: what the schedule draws. recipe: their mean by share, and their largest memory.
    breaks_even: the largest share of kept visual tokens at which the reduction pays; None: at none, or not timed.
    """

    name: str
    full: BudgetCost
    budgets: tuple[BudgetCost, ...]
    recipe: BudgetCost
    breaks_even: float | None
    data: Mapping[str, Any]
    parameters: Mapping[str, Mapping[str, int]]
    run: Mapping[str, Any]
    device: Mapping[str, str | int]
    timings: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]

    @property
    def speedup(self) -> float | None:
        """Speed of the recipe relative to full tokens; above 1 it is faster."""
        before, after = self.full.step_seconds, self.recipe.step_seconds
        return None if before is None or after is None else before / after

    @property
    def bound(self) -> float:
        """The speed-up that the FLOPs allow."""
        return self.full.step_flops / self.recipe.step_flops

    def expected(self) -> dict[str, float]:
        """The figures that a run can measure, under the names that `compare_with_run` takes."""
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

    def predicted_vs_actual(self, actual: Mapping[str, float]) -> dict[str, dict[str, float | None]]:
        """Every figure that was predicted or measured; ratio: actual / predicted."""
        expected, found = self.expected(), dict[str, dict[str, float | None]]()
        for name in [*expected, *(name for name in actual if name not in expected)]:
            predicted, measured = expected.get(name), actual.get(name)
            ratio = measured / predicted if predicted and measured is not None else None
            found[name] = {"predicted": predicted, "actual": measured, "ratio": ratio}
        return found

    def compare_with_run(self, actual: Mapping[str, float]) -> str:
        """The table of `predicted_vs_actual`, to print."""
        rows = [["", "predicted", "actual", "actual / predicted"]]
        for name, figures in self.predicted_vs_actual(actual).items():
            rows.append([name, *(_figure(figures[key]) for key in ("predicted", "actual", "ratio"))])
        return aligned_table(rows)

    # The names until the next release.
    compared, beside = predicted_vs_actual, compare_with_run

    def to_dict(self) -> dict[str, Any]:
        derived = {"speedup": self.speedup, "bound": self.bound, "expected": self.expected()}
        return {"version": VERSION, **asdict(self), **derived}

    def __str__(self) -> str:
        blocks = [_head(self), [_table(self)], _verdict(self), _sources(self)]
        return "\n\n".join("\n".join(block) for block in blocks)


def read_run_figures(run: Path) -> dict[str, float]:
    """What a run measured, from its metrics.jsonl, under the names of `Plan.expected`: medians over the logged steps
    without the first (it builds what later ones reuse), and the largest memory."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(f"{run} holds no metrics.jsonl; expected the folder of a run (train.output_dir)")
    steps = [line for line in read_jsonl(file, tolerant=True) if "step_seconds" in line and "visual_before" in line]
    if not steps:
        raise ValueError(f"{file} holds no measured step; let the run continue for a few logged steps")
    warm = steps[1:] or steps
    before, after = (sum(line[name] for line in steps) for name in ("visual_before", "visual_after"))
    return {
        "step_seconds": float(median(line["step_seconds"] for line in warm)),
        "samples_per_second": float(median(line["samples_per_second"] for line in warm)),
        "peak_memory_bytes": max(line["peak_memory_gib"] for line in steps) * GIB,
        "share_of_visual_tokens_kept": after / before if before else 1.0,
    }


def _head(plan: Plan) -> list[str]:
    data, run = plan.data, plan.run
    rows = "streamed rows" if data["rows"] is None else f"{data['rows']} rows"
    other = "FSDP2" if run["backend"] == "fsdp2" and run["ranks"] > 1 else "no DeepSpeed"
    kind = f"DeepSpeed, ZeRO stage {run['zero_stage']}" if run["deepspeed"] else other
    trained = ", ".join(f"{part} {n['trained']:,} of {n['all']:,}" for part, n in plan.parameters.items())
    return [
        f"plan of {plan.name} on {plan.device['device']}, {plan.device['dtype']}, {run['ranks']} rank(s), {kind}",
        f"{rows}, {data['rows looked at']} looked at, {data['rows dropped']} of them dropped; a sample has "
        f"{data['tokens']:.1f} tokens, {data['visual_tokens']:.1f} visual and {data['targets']:.1f} supervised",
        f"trained parameters: {trained}",
    ]


_TOKENS: dict[str, Callable[[BudgetCost], float]] = {
    "visual tokens a sample": lambda cost: cost.visual_kept,
    "tokens a sample": lambda cost: cost.tokens,
    "positions in the first layer": lambda cost: cost.padded,
    "positions in the last layer": lambda cost: cost.padded_reduced,
}


def _table(plan: Plan) -> str:
    full = plan.full
    costs = [full, *plan.budgets, *([plan.recipe] if len(plan.budgets) > 1 else [])]
    rows = [["", *(cost.label for cost in costs)]]
    rows += [[name, *(f"{value(cost):.1f}" for cost in costs)] for name, value in _TOKENS.items()]
    if len(plan.budgets) > 1:
        rows.append(["share of the steps", "", *(f"{cost.share:.2f}" for cost in plan.budgets), ""])
    size, unit = _unit(full.step_flops, 1000, ("MFLOP", "GFLOP", "TFLOP"))
    rows.append([f"{unit} a step", *(_digits(cost.step_flops / size) for cost in costs)])
    rows.append(["  bound of the speed-up", *(f"{full.step_flops / cost.step_flops:.2f}x" for cost in costs)])
    rows += _seconds_rows(full, costs)
    size, unit = _unit(full.peak_bytes, 1024, ("MiB", "GiB"))
    rows.append([f"peak memory, {unit}", *(_digits(cost.peak_bytes / size) for cost in costs)])
    parts = [part for part in full.memory if any(cost.memory[part] for cost in costs)]
    rows += [[f"  {part}", *(_digits(cost.memory[part] / size) for cost in costs)] for part in parts]
    return aligned_table(rows)


def _seconds_rows(full: BudgetCost, costs: Sequence[BudgetCost]) -> list[list[str]]:
    if full.step_seconds is None:
        return [["seconds a step", *("not timed" for _ in costs)]]
    steps = [cost.step_seconds or 0.0 for cost in costs]
    rows = [["seconds a step", *map(_digits, steps)]]
    for part in dict.fromkeys(part for cost in costs for part in cost.seconds or {}):
        values = [(cost.seconds or {}).get(part, 0.0) for cost in costs]
        if any(values):
            rows.append([f"  {part}", *map(_digits, values)])
    return [*rows, ["  speed-up", *(f"{full.step_seconds / step:.2f}x" for step in steps)]]


def _verdict(plan: Plan) -> list[str]:
    steps, step = plan.run["steps"], plan.recipe.step_seconds
    if not plan.budgets:
        duration = "" if step is None else f", {_duration(steps * step)}"
        return [f"no reduction in the recipe; {steps} steps{duration}"]
    if step is None or plan.full.step_seconds is None or plan.speedup is None:
        return [f"{steps} steps; FLOPs allow a speed-up of {plan.bound:.2f}x at most; without timing, no hours"]
    answer = "yes" if plan.speedup > 1 else "no"
    if plan.breaks_even is None:
        break_even = "on this data the reduction never gains as much time as its own selection of tokens takes"
    else:
        break_even = (
            f"it starts to pay when no more than {plan.breaks_even:.1%} of the visual tokens are kept "
            f"from layer {plan.run['layer']} on (selection of tokens included)"
        )
    return [
        f"will it pay? {answer}: {plan.speedup:.2f}x faster than full tokens; FLOPs allow {plan.bound:.2f}x",
        break_even,
        f"{steps} steps take {_duration(steps * step)} instead of {_duration(steps * plan.full.step_seconds)} with "
        "full tokens",
    ]


def _sources(plan: Plan) -> list[str]:
    timed = sorted({call.rstrip("0123456789 ") for call in plan.timings})
    measured = f"measured on this device: {', '.join(timed)}" if timed else "measured: only the data"
    return [measured, _COMPUTED, _NOT_COUNTED, *plan.notes]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 10_000 else _digits(value)


def _digits(value: float) -> str:
    """Three of them."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 1e-3 or not value else f"{value:.1e}"


def _unit(value: float, step: int, names: Sequence[str]) -> tuple[float, str]:
    """(size, name) of the largest unit that the value has one of; the first is `step` squared."""
    power = next((n for n in range(len(names) - 1, 0, -1) if value >= step ** (2 + n)), 0)
    return float(step ** (2 + power)), names[power]


def _duration(seconds: float) -> str:
    return next(f"{seconds / (size or 1.0):.1f} {name}" for size, name in _TIMES if seconds >= size)
