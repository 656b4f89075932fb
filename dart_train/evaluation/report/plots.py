"""Accuracy over budget, and over latency: each as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from ..comparison_grid import FULL
from ..cost import CellCost
from ..scoring import ScoreRow

PALETTE = ("#2b6cb0", "#c0652f", "#3b8268", "#8a5a9e", "#b08a1e", "#4f9ab3", "#a8475a", "#6b7785", "#7a8f3c", "#d08c9b")
MARKS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
_LOOKS: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": "#3e4c59",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "xtick.color": "#616e7c",
    "ytick.color": "#616e7c",
    "axes.grid": True,
    "grid.color": "#edf0f3",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "dart_train",  # the same file for the same figures
}
_WIDTH, _HEIGHT = 4.2, 3.6  # inches of a panel
_BESIDE = 0.018  # how far methods of the same budget stand apart, as a factor


def over_budget(entries: Sequence[ScoreRow], metric: str) -> Figure:
    """entries: of all questions of one set, in one metric. A panel for each checkpoint; full tokens are the band."""
    with rc_context(_LOOKS):
        figure, panels = _panels(entries)
        for checkpoint, axes in panels.items():
            here = [entry for entry in entries if entry.cell[0] == checkpoint]
            _band(axes, here)
            for number, method in enumerate(_methods(entries)):
                points = sorted((e for e in here if e.cell[1] == method and e.kept), key=lambda e: e.kept or 0.0)
                shift = (1 + _BESIDE) ** (number - len(_methods(entries)) / 2)
                _line(axes, [100 * (e.kept or 0.0) * shift for e in points], points, number, method)
            axes.set_xscale("log")
            _percent_ticks(axes, [100 * entry.kept for entry in here if entry.kept])
            axes.set(title=checkpoint, xlabel="visual tokens kept (%)")
        _finish(figure, panels, metric)
    return figure


def over_latency(entries: Sequence[ScoreRow], costs: Sequence[CellCost], metric: str) -> Figure:
    """Up and to the left is better. Bars: 95% intervals upright, quartiles of the repeats across."""
    times = {(cost.checkpoint, cost.method, cost.budget): cost.total for cost in costs}
    with rc_context(_LOOKS):
        figure, panels = _panels(entries)
        for checkpoint, axes in panels.items():
            here = [entry for entry in entries if entry.cell[0] == checkpoint and entry.cell in times]
            for number, method in enumerate([FULL, *_methods(entries)]):
                points = sorted((e for e in here if e.cell[1] == method), key=lambda e: e.kept or 0.0)
                if points:
                    took = [times[entry.cell] for entry in points]
                    across = [[1e3 * (t.median - t.low) for t in took], [1e3 * (t.high - t.median) for t in took]]
                    _line(axes, [1e3 * t.median for t in took], points, number - 1, method, across)
            axes.set(title=checkpoint, xlabel="milliseconds for an answer (median)")
        _finish(figure, panels, metric)
    return figure


def _panels(entries: Sequence[ScoreRow]) -> tuple[Figure, dict[str, Any]]:
    names = list(dict.fromkeys(entry.cell[0] for entry in entries))
    figure = Figure(figsize=(_WIDTH * len(names) + 1.4, _HEIGHT), layout="constrained")
    made = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    return figure, dict(zip(names, made, strict=True))


def _methods(entries: Sequence[ScoreRow]) -> list[str]:
    return [name for name in dict.fromkeys(entry.cell[1] for entry in entries) if name != FULL]


def _band(axes: Any, entries: Sequence[ScoreRow]) -> None:
    full = next((entry.score for entry in entries if entry.cell[1] == FULL), None)
    if full is not None:
        axes.axhspan(100 * full.low, 100 * full.high, color="#e6edf5", zorder=0)
        axes.axhline(100 * full.value, color="#52606d", lw=1, ls=(0, (4, 3)), label="full tokens", zorder=1)


def _line(
    axes: Any, x: Sequence[float], points: Sequence[ScoreRow], number: int, method: str, across: Any = None
) -> None:
    """number -1: full tokens."""
    y = [100 * entry.score.value for entry in points]
    down = [value - 100 * entry.score.low for value, entry in zip(y, points, strict=True)]
    up = [100 * entry.score.high - value for value, entry in zip(y, points, strict=True)]
    colour = "#323f4b" if number < 0 else PALETTE[number % len(PALETTE)]
    mark = "o" if number < 0 else MARKS[number % len(MARKS)]
    axes.errorbar(
        x, y, yerr=[down, up], xerr=across, color=colour, marker=mark, ms=4.5, lw=1.4, elinewidth=0.9,
        label="full tokens" if number < 0 else method, zorder=3,
    )  # fmt: skip


def _percent_ticks(axes: Any, shares: Sequence[float]) -> None:
    ticks = sorted({float(f"{share:.3g}") for share in shares})
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(ticks) > 6:
        axes.tick_params(axis="x", rotation=60)


def _finish(figure: Figure, panels: dict[str, Any], metric: str) -> None:
    first = next(iter(panels.values()))
    first.set_ylabel(f"{metric} (%)")
    low, high = first.get_ylim()
    first.set_ylim(max(-1.5, low), min(101.5, max(high, low + 5.0)))
    found: dict[str, Any] = {}
    for axes in panels.values():
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(found.values(), found.keys(), loc="outside right upper", fontsize=9)


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """stem.png and stem.svg."""
    with rc_context(_LOOKS):
        figure.savefig(stem.with_suffix(".png"), dpi=150)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    return stem.with_suffix(".png"), stem.with_suffix(".svg")


def as_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with rc_context(_LOOKS):
        figure.savefig(file, format="png", dpi=150)
    return file.getvalue()
