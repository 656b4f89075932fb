"""How many visual tokens may stay: a number or a ratio, turned into exact counts on the host."""

from __future__ import annotations

from collections.abc import Sequence

Keep = int | float


def check_keep(keep: object) -> str | None:
    """What is wrong with `keep`, in words, or None."""
    expected = "expected a number of tokens (an int >= 1) or a ratio (a float in (0, 1])"
    if isinstance(keep, bool) or not isinstance(keep, int | float):
        return f"keep={keep!r}: {expected}"
    if isinstance(keep, float) and not 0.0 < keep <= 1.0:
        hint = f"; for {keep:g} tokens write keep={keep:.0f}" if keep > 1 and keep.is_integer() else ""
        return f"keep={keep!r}: {expected}{hint}"
    if isinstance(keep, int) and keep < 1:
        return f"keep={keep!r}: {expected}; to see no image at all, leave it out of the prompt"
    return None


def tokens_to_keep(keep: Keep, available: int) -> int:
    """The budget of one group of `available` tokens: never more than there are, and never none of some.

    Ratios round to the nearest token, so that the paper's 11.1% of 576 is its 64, not 63.
    """
    wanted = keep if isinstance(keep, int) else max(1, round(available * keep))
    return min(wanted, available)


def split_budget(keep: Keep, sizes: Sequence[int]) -> list[int]:
    """One budget over several groups of a sample, in proportion to their sizes; the sum is exact.

    A ratio is simply the ratio of each group. A number is distributed by largest remainders.
    """
    if isinstance(keep, float):
        return [tokens_to_keep(keep, size) for size in sizes]
    total = sum(sizes)
    wanted = min(keep, total)
    exact = [wanted * size / total if total else 0.0 for size in sizes]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (parts[i] - exact[i], i))
    for i in by_remainder[: wanted - sum(parts)]:
        parts[i] += 1
    return parts
