"""From which share of kept tokens on the reduction pays for its own choice."""

from __future__ import annotations

from .rates import Rates
from .work import StepWorkload

_HALVINGS = 40


def breaks_even(rates: Rates, workload: StepWorkload, layer: int, shrunk: bool = False) -> float | None:
    """The largest share of visual tokens kept from `layer` on at which a micro-batch takes no longer than with all of
    them; None where even none would not pay. shrunk: the tower makes fewer, too."""

    def seconds(share: float) -> float:
        return sum(float(cost.sum()) for cost in rates.of(workload.at(share, layer, shrunk)).values())

    full = sum(float(cost.sum()) for cost in rates.of(workload.of()).values())
    if seconds(0.0) > full:
        return None
    low, high = 0.0, 1.0
    if seconds(high) <= full:
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if seconds(middle) <= full else (low, middle)
    return low
