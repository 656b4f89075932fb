"""A plan to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..common.tables import aligned_table

if TYPE_CHECKING:
    from .result import Cost, Plan

_TIMES = ((3600.0, "hours"), (60.0, "minutes"), (0.0, "seconds"))
_COMPUTED = "computed from shapes: tokens, FLOPs, memory, and the sums of what was timed over layers and micro-batches"
_APART = "not counted: loading of data, the way between ranks, validation and saving, DeepSpeed's buffers"


def plan_text(plan: Plan) -> str:
    blocks = [_head(plan), _table(plan), _verdict(plan), _said(plan)]
    return "\n\n".join("\n".join(block) for block in blocks)


def _head(plan: Plan) -> list[str]:
    data, run = plan.data, plan.run
    rows = "streamed rows" if data["rows"] is None else f"{data['rows']} rows"
    kind = f"DeepSpeed, ZeRO stage {run['zero_stage']}" if run["deepspeed"] else "no DeepSpeed"
    lines = [
        f"plan of {plan.name} on {plan.device['device']}, {plan.device['dtype']}, {run['ranks']} rank(s), {kind}",
        f"{rows}, {data['rows looked at']} looked at, {data['rows dropped']} of them dropped; a sample has "
        f"{data['tokens']:.1f} tokens, {data['visual_tokens']:.1f} visual and {data['targets']:.1f} learnt",
    ]
    trained = ", ".join(f"{part} {n['trained']:,} of {n['all']:,}" for part, n in plan.parameters.items())
    return [*lines, f"parameters that train: {trained}"]


def _table(plan: Plan) -> list[str]:
    costs = [plan.full, *plan.budgets, *([plan.recipe] if len(plan.budgets) > 1 else [])]
    rows = [["", *(cost.label for cost in costs)]]
    rows += [[name, *(f"{value(cost):.1f}" for cost in costs)] for name, value in _TOKENS.items()]
    if len(plan.budgets) > 1:
        rows.append(["share of the steps", "", *(f"{cost.share:.2f}" for cost in plan.budgets), ""])
    size, unit = _unit(_flops(plan.full), 1000, ("MFLOP", "GFLOP", "TFLOP"))
    rows.append([f"{unit} a step", *(_digits(_flops(cost) / size) for cost in costs)])
    rows.append(["  bound of the speed-up", *(f"{_ratio(plan.full, cost, _flops)}x" for cost in costs)])
    rows += _seconds(plan.full, costs)
    size, unit = _unit(plan.full.peak_bytes, 1024, ("MiB", "GiB"))
    rows.append([f"peak memory, {unit}", *(_digits(cost.peak_bytes / size) for cost in costs)])
    parts = [part for part in plan.full.memory if any(cost.memory[part] for cost in costs)]
    rows += [[f"  {part}", *(_digits(cost.memory[part] / size) for cost in costs)] for part in parts]
    return [aligned_table(rows)]


def _seconds(full: Cost, costs: Sequence[Cost]) -> list[list[str]]:
    if full.seconds is None:
        return [["seconds a step", *("not timed" for _ in costs)]]
    parts = dict.fromkeys(part for cost in costs for part in cost.seconds or {})
    rows = [["seconds a step", *(_digits(cost.step_seconds or 0.0) for cost in costs)]]
    for part in parts:
        values = [(cost.seconds or {}).get(part, 0.0) for cost in costs]
        if any(values):
            rows.append([f"  {part}", *map(_digits, values)])
    return [*rows, ["  speed-up", *(f"{_ratio(full, cost, _time)}x" for cost in costs)]]


def _verdict(plan: Plan) -> list[str]:
    steps, run = plan.run["steps"], plan.recipe.step_seconds
    if not plan.budgets:
        hours = "" if run is None else f", {_hours(steps * run)}"
        return [f"no reduction in the recipe; {steps} steps{hours}"]
    if run is None or plan.full.step_seconds is None or plan.speedup is None:
        return [f"{steps} steps; FLOPs allow a speed-up of {plan.bound:.2f}x at most; without timing, no hours"]
    lines = [_pays(plan), _even(plan)]
    before, after = _hours(steps * plan.full.step_seconds), _hours(steps * run)
    return [*lines, f"{steps} steps take {after} instead of {before} with full tokens"]


def _pays(plan: Plan) -> str:
    assert plan.speedup is not None
    answer = "yes" if plan.speedup > 1 else "no"
    return f"will it pay? {answer}: {plan.speedup:.2f}x faster than full tokens; FLOPs allow {plan.bound:.2f}x"


def _even(plan: Plan) -> str:
    if plan.breaks_even is None:
        return "at no ratio does the reduction pay for its own choice of tokens, on this data"
    return (
        f"it starts to pay when no more than {plan.breaks_even:.1%} of the visual tokens are kept "
        f"from layer {plan.run['layer']} on (choice of tokens included)"
    )


def _said(plan: Plan) -> list[str]:
    timed = sorted({call.rstrip("0123456789 ") for call in plan.timings})
    measured = f"measured on this device: {', '.join(timed)}" if timed else "measured: nothing but the data"
    return [measured, _COMPUTED, _APART, *plan.notes]


def beside_text(compared: Mapping[str, Mapping[str, float | None]]) -> str:
    rows = [["", "predicted", "actual", "actual / predicted"]]
    for name, figures in compared.items():
        rows.append([name, *(_figure(figures[key]) for key in ("predicted", "actual", "ratio"))])
    return aligned_table(rows)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 10_000 else _digits(value)


_TOKENS = {
    "visual tokens a sample": lambda cost: cost.visual_kept,
    "tokens a sample": lambda cost: cost.tokens,
    "places in the first layer": lambda cost: cost.padded,
    "places in the last layer": lambda cost: cost.padded_reduced,
}


def _flops(cost: Cost) -> float:
    return sum(cost.flops.values())


def _time(cost: Cost) -> float:
    return cost.step_seconds or 0.0


def _ratio(full: Cost, cost: Cost, of: Callable[[Cost], float]) -> str:
    return f"{of(full) / of(cost):.2f}"


def _digits(value: float) -> str:
    """Three of them."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 1e-3 or not value else f"{value:.1e}"


def _unit(value: float, step: int, names: Sequence[str]) -> tuple[float, str]:
    """(size, name) of the largest unit that the value has one of; the first is `step` squared."""
    power = next((n for n in range(len(names) - 1, 0, -1) if value >= step ** (2 + n)), 0)
    return float(step ** (2 + power)), names[power]


def _hours(seconds: float) -> str:
    return next(f"{seconds / (size or 1.0):.1f} {name}" for size, name in _TIMES if seconds >= size)
