"""Plots of accuracy over budget and over latency, written as PNG and SVG."""

from __future__ import annotations

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
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
_FULL_COLOUR = "#323f4b"
_STYLE: dict[str, Any] = {
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
    "svg.hashsalt": "dart_train",  # equal figures give equal files
}
_PANEL_WIDTH, _PANEL_HEIGHT, _LEGEND_LINE = 4.2, 3.6, 0.2  # inches
_OFFSET = 0.018  # between methods at the same budget, as a factor


def over_budget(rows: Sequence[ScoreRow], metric: str) -> Figure:
    """rows: all questions of one set in one metric. A panel for each checkpoint; the band is full tokens."""
    with rc_context(_STYLE):
        figure, panels = _panels(rows)
        methods = _methods(rows)
        for checkpoint, axes in panels.items():
            here = [row for row in rows if row.cell[0] == checkpoint]
            _full_tokens_band(axes, here)
            for number, method in enumerate(methods):
                points = sorted((r for r in here if r.cell[1] == method and r.kept), key=lambda r: r.kept or 0.0)
                offset = (1 + _OFFSET) ** (number - len(methods) / 2)
                _line(axes, [100 * (row.kept or 0.0) * offset for row in points], points, number, method)
            axes.set_xscale("log")
            _percent_ticks(axes, [100 * row.kept for row in here if row.kept])
            axes.set(title=checkpoint, xlabel="visual tokens kept (%)")
        _finish(figure, panels, metric)
    return figure


def over_latency(rows: Sequence[ScoreRow], costs: Sequence[CellCost], metric: str) -> Figure:
    """Top left is best. Vertical bars: 95% intervals; horizontal bars: quartiles of the latency."""
    times = {cost.cell: cost.total for cost in costs}
    with rc_context(_STYLE):
        figure, panels = _panels(rows)
        for checkpoint, axes in panels.items():
            here = [row for row in rows if row.cell[0] == checkpoint and row.cell in times]
            for number, method in enumerate([FULL, *_methods(rows)], start=-1):
                points = sorted((row for row in here if row.cell[1] == method), key=lambda row: row.kept or 0.0)
                if points:
                    timings = [times[row.cell] for row in points]
                    spread = [
                        [1e3 * (timing.median - timing.low) for timing in timings],
                        [1e3 * (timing.high - timing.median) for timing in timings],
                    ]
                    _line(axes, [1e3 * timing.median for timing in timings], points, number, method, spread)
            axes.set(title=checkpoint, xlabel="milliseconds for an answer (median)")
        _finish(figure, panels, metric)
    return figure


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Writes stem.png and stem.svg."""
    with rc_context(_STYLE):
        figure.savefig(stem.with_suffix(".png"), dpi=150)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    return stem.with_suffix(".png"), stem.with_suffix(".svg")


def _panels(rows: Sequence[ScoreRow]) -> tuple[Figure, dict[str, Any]]:
    names = list(dict.fromkeys(row.cell[0] for row in rows))
    figure = Figure(figsize=(_PANEL_WIDTH * len(names), _PANEL_HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    return figure, dict(zip(names, panels, strict=True))


def _methods(rows: Sequence[ScoreRow]) -> list[str]:
    return [name for name in dict.fromkeys(row.cell[1] for row in rows) if name != FULL]


def _full_tokens_band(axes: Any, rows: Sequence[ScoreRow]) -> None:
    full = next((row.score for row in rows if row.cell[1] == FULL), None)
    if full is not None:
        axes.axhspan(100 * full.low, 100 * full.high, color="#e6edf5", zorder=0)
        axes.axhline(100 * full.value, color="#52606d", lw=1, ls=(0, (4, 3)), label="full tokens", zorder=1)


def _line(
    axes: Any, x: Sequence[float], points: Sequence[ScoreRow], number: int, method: str, x_spread: Any = None
) -> None:
    """number: of the method, for its colour and marker; -1 for full tokens."""
    y = [100 * row.score.value for row in points]
    below = [value - 100 * row.score.low for value, row in zip(y, points, strict=True)]
    above = [100 * row.score.high - value for value, row in zip(y, points, strict=True)]
    axes.errorbar(
        x,
        y,
        yerr=[below, above],
        xerr=x_spread,
        color=_FULL_COLOUR if number < 0 else PALETTE[number % len(PALETTE)],
        marker=MARKERS[max(0, number) % len(MARKERS)],
        ms=4.5,
        lw=1.4,
        elinewidth=0.9,
        label="full tokens" if number < 0 else method,
        zorder=3,
    )


def _percent_ticks(axes: Any, shares: Sequence[float]) -> None:
    ticks = sorted({float(f"{share:.3g}") for share in shares})
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(ticks) > 6:
        axes.tick_params(axis="x", rotation=60)


def _finish(figure: Figure, panels: dict[str, Any], metric: str) -> None:
    """Limits of the y axis, and one legend below the panels: next to them it would shrink them on a narrow screen."""
    first = next(iter(panels.values()))
    first.set_ylabel(f"{metric} (%)")
    low, high = first.get_ylim()
    first.set_ylim(max(-1.5, low), min(101.5, max(high, low + 5.0)))
    found: dict[str, Any] = {}
    for axes in panels.values():
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    entry_width = 0.6 + 0.075 * max(map(len, found))  # inches at this font size
    columns = max(1, min(len(found), int(_PANEL_WIDTH * len(panels) / entry_width)))
    lines = -(-len(found) // columns)
    figure.set_figheight(_PANEL_HEIGHT + _LEGEND_LINE * lines)
    figure.legend(found.values(), found.keys(), loc="outside lower center", fontsize=9, ncols=columns)
