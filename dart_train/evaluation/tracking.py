"""The same to W&B: tables, plots, and pictures of what was lost."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..common.trackers import wandb_mode
from .comparison import Results
from .comparison_grid import FULL
from .scoring import ALL
from .tables import cost_rows, pair_rows, table_rows

if TYPE_CHECKING:
    from .report import Report

log = logging.getLogger(__name__)
_PICTURES = 4  # questions of each checkpoint and set


def track(results: Results, report: Report) -> None:
    """Whatever a tracker suffers from, the files are there."""
    if "wandb" not in results.prepared.recipe.log.report_to:
        return
    try:
        _wandb(results, report)
    except Exception as error:
        log.warning("W&B was not told of the comparison: %s", error)


def _wandb(results: Results, report: Report) -> None:
    import wandb

    from .report.gallery import pictures_of
    from .report.views import Views

    say, folder = results.prepared.recipe.log, results.folder
    run = wandb.init(
        project=say.project,
        name=say.name or f"{folder.parent.name}-{folder.name}",
        group=say.group,
        tags=list(say.tags) or None,
        mode=wandb_mode(say.mode),
        job_type="compare",
        config=results.prepared.recipe.to_dict(),
        dir=str(folder),
        settings=wandb.Settings(console="off", disable_git=True, save_code=False, x_disable_stats=True),
    )
    try:
        quality, cost = table_rows(results.entries), cost_rows(results.costs)
        rows = {"table": quality, "pairs": pair_rows(results.pairs), "cost": cost}
        told: dict[str, Any] = {f"compare/{name}": _table(wandb, each) for name, each in rows.items() if each}
        told |= {f"compare/{plot.png.stem}": wandb.Image(str(plot.png)) for plot in report.plots}
        lost = pictures_of(results, Views(results), _PICTURES)
        if lost:
            told["compare/regressions"] = [wandb.Image(image, caption=caption) for caption, image in lost]
        told["compare/report"] = wandb.Html(report.page.read_text(encoding="utf-8"), inject=False)
        run.log(told)
        run.summary.update(_summary(results))
    finally:
        run.finish()


def _table(wandb: Any, rows: list[dict[str, Any]]) -> Any:
    """Every value as text where a column holds both: W&B types its columns."""
    names = list(rows[0])
    mixed = {name for name in names if len({type(row[name]) for row in rows}) > 1}
    data = [[str(row[name]) if name in mixed else row[name] for name in names] for row in rows]
    return wandb.Table(columns=names, data=data)


def _summary(results: Results) -> dict[str, float]:
    """One number a row, to compare runs by."""
    found = {}
    for entry in results.entries:
        if entry.kind == ALL:
            place = entry.row[:1] if entry.row[1] == FULL else entry.row
            found[f"{entry.set}/{entry.metric}/{'/'.join(place)}"] = entry.figure.value
    return found
