"""A comparison drawn: plots, and one page that opens from disk without a network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..scoring import ALL_KINDS
from .page import Plot, page
from .plots import over_budget, over_latency, save
from .tables import title_of

if TYPE_CHECKING:
    from ..comparison import ComparisonResults

NAME = "report.html"


@dataclass(frozen=True)
class Report:
    page: Path
    plots: list[Plot]


def write_report(results: ComparisonResults) -> Report:
    """report.html and the plots, beside the tables."""
    plots = draw(results)
    file = results.folder / NAME
    unfinished = file.with_name(f".{NAME}.unfinished")
    unfinished.write_text(page(results, plots), encoding="utf-8")
    os.replace(unfinished, file)
    return Report(file, plots)


def draw(results: ComparisonResults) -> list[Plot]:
    """Two plots for each set and metric; the names of all but the first say whose they are. A metric that only some
    kinds of questions have is in the tables."""
    made: list[Plot] = []
    whole = [entry for entry in results.scores if entry.kind == ALL_KINDS]
    for name, metric in dict.fromkeys((entry.set, entry.metric) for entry in whole):
        mine = [entry for entry in whole if (entry.set, entry.metric) == (name, metric)]
        suffix = f"_{_safe(name)}_{metric}" if made else ""
        title = f"{name}: {title_of(metric)}"
        stem = results.folder / f"accuracy_over_budget{suffix}"
        made.append(Plot(f"{title}, by visual tokens kept", *save(over_budget(mine, title_of(metric)), stem)))
        if results.costs:
            stem = results.folder / f"accuracy_over_latency{suffix}"
            figure = over_latency(mine, results.costs, title_of(metric))
            made.append(Plot(f"{title}, by latency", *save(figure, stem)))
    return made


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name)
