"""The comparison in W&B: tables, plots, and images of questions that a reduction lost."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..common.trackers import wandb_mode
from .comparison_grid import FULL
from .scoring import ALL_KINDS
from .tables import cost_records, pair_records, score_records

if TYPE_CHECKING:
    from .report import WrittenReport
    from .results import ComparisonResults

log = logging.getLogger(__name__)
_QUESTIONS = 4  # with images, of each checkpoint and set


def track(results: ComparisonResults, report: WrittenReport) -> None:
    """A tracker that fails does not fail the comparison: its files are already written."""
    if "wandb" not in results.prepared.recipe.log.report_to:
        return
    try:
        _log_to_wandb(results, report)
    except Exception as error:
        log.warning("the comparison was not logged to W&B: %s", error)


def _log_to_wandb(results: ComparisonResults, report: WrittenReport) -> None:
    import wandb

    from .report.regressions import captioned_regressions

    config, folder = results.prepared.recipe.log, results.folder
    run = wandb.init(
        project=config.project,
        name=config.name or f"{folder.parent.name}-{folder.name}",
        group=config.group,
        tags=list(config.tags) or None,
        mode=wandb_mode(config.mode),
        job_type="compare",
        config=results.prepared.recipe.to_dict(),
        dir=str(folder),
        settings=wandb.Settings(console="off", disable_git=True, save_code=False, x_disable_stats=True),
    )
    try:
        tables = {
            "table": score_records(results.scores),
            "pairs": pair_records(results.pairs),
            "cost": cost_records(results.costs),
        }
        logged: dict[str, Any] = {f"compare/{name}": _wandb_table(wandb, each) for name, each in tables.items() if each}
        logged |= {f"compare/{plot.png.stem}": wandb.Image(str(plot.png)) for plot in report.plots}
        lost = captioned_regressions(results, _QUESTIONS)
        if lost:
            logged["compare/regressions"] = [wandb.Image(image, caption=caption) for caption, image in lost]
        logged["compare/report"] = wandb.Html(report.page.read_text(encoding="utf-8"), inject=False)
        run.log(logged)
        run.summary.update(_summary(results))
    finally:
        run.finish()


def _wandb_table(wandb: Any, records: list[dict[str, Any]]) -> Any:
    """W&B gives each column one type, so the values of a column with several types become text."""
    names = list(records[0])
    mixed = {name for name in names if len({type(record[name]) for record in records}) > 1}
    data = [[str(record[name]) if name in mixed else record[name] for name in names] for record in records]
    return wandb.Table(columns=names, data=data)


def _summary(results: ComparisonResults) -> dict[str, float]:
    """One number for each cell, set and metric, by which W&B compares runs."""
    summary = {}
    for row in results.scores:
        if row.kind == ALL_KINDS:
            cell = row.cell[:1] if row.cell[1] == FULL else row.cell
            summary[f"{row.set}/{row.metric}/{'/'.join(cell)}"] = row.score.value
    return summary
