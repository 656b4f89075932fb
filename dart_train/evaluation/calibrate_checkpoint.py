"""`python -m dart_train calibrate`: answers the recipe's questions at each budget, and sets the checkpoint's budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..checkpoints import CheckpointSelector, ResolvedModel, resolve
from ..checkpoints.atomic import replace_file
from ..common.distributed import RankInfo
from ..common.io import ProblemCollector
from ..common.metrics import METRICS, Metric
from ..common.tables import markdown_table
from ..config import Recipe
from ..reduction import FewerPixels, KeepAll, Reducer
from ..reduction.budget import Keep
from ..reduction.reducer_file import REDUCER_FILE, read_reducer_file
from .calibration import Calibration, CalibrationLevel, calibrate, digest_of, independent_questions
from .comparison import answer_questions, fingerprints_of
from .comparison_grid import FULL, PreparedComparison, prepare
from .tables import format_p


@dataclass(frozen=True)
class CalibratedCheckpoint:
    """folder: of the checkpoint, with its reducer.json. answers: the folder with every answer."""

    result: Calibration
    folder: Path
    answers: Path


METHOD = "calibrated"  # the method's name in results.jsonl
FOLDER = "calibration"  # in compare.output_dir


def calibrate_checkpoint(
    path: str | Path,
    recipe: Recipe,
    level: CalibrationLevel,
    checkpoint: CheckpointSelector = None,
    all_questions: bool = False,
) -> CalibratedCheckpoint | None:
    """Writes the smallest budget that passes into the checkpoint's reducer.json; if none does, the file stays as it is.

    recipe: its compare section names sets, budgets and metrics. all_questions: also several about the same image, as
    if they were independent. Returns None on all ranks but the first. Raises ValueError with everything that is wrong,
    before weights are read.
    """
    ranks = RankInfo.read()
    problems = ProblemCollector()
    found = problems.collect(lambda: resolve(path, checkpoint=checkpoint))
    problems.collect(lambda: _check_budgets(recipe.compare.budgets), "compare.budgets")
    metric = problems.collect(lambda: _metric(recipe), "compare.metrics")
    if found is not None:
        problems.collect(lambda: _check_reduction(found))
    problems.raise_if_any("cannot calibrate")
    assert found is not None and metric is not None
    prepared = prepare(_with_checkpoint(recipe, found), progress=ranks.rank == 0)
    if not all_questions:
        chosen = independent_questions(prepared.questions, recipe.compare.seed)
        prepared = replace(prepared, questions=chosen)
    level.check_number(len(prepared.questions))
    records = answer_questions(prepared, fingerprints_of(prepared), ranks)
    if records is None:
        return None
    budgets = [cell.budget for cell in prepared.cells if cell.budget != FULL]
    result = calibrate(records, prepared.questions, budgets, metric, level)
    if result.chosen is not None:
        _write(found, prepared, result, metric, all_questions)
    return CalibratedCheckpoint(result, found.location.folder, prepared.folder)


def _check_reduction(found: ResolvedModel) -> None:
    folder = found.location.folder
    if not found.trained:
        state = f"has no {REDUCER_FILE}" if found.trained is None else "was trained without a reduction"
        raise ValueError(
            f"{folder} {state}, so there is no budget to choose; give a run, a checkpoint or an export that was "
            "trained with one"
        )
    unsuitable = [stage.name for stage in found.trained if isinstance(stage, FewerPixels | KeepAll)]
    if unsuitable:
        raise ValueError(f"{folder} is served with {', '.join(unsuitable)}, which has no budget of tokens to choose")
    if found.location.revision is not None or not folder.is_dir() or str(folder) != found.location.source:
        raise ValueError(
            f"{found.location.source} is on a hub; give a local folder, whose {REDUCER_FILE} can be written"
        )


def _check_budgets(budgets: Sequence[Keep]) -> None:
    """They are tested in the order of the recipe."""
    reduced = [keep for keep in budgets if keep != 1.0 or isinstance(keep, int)]
    given = ", ".join(f"{keep:g}" for keep in budgets)
    if not reduced:
        raise ValueError(f"given {given}: expected budgets below full tokens, such as [0.5, 0.222, 0.111]")
    if len({type(keep) for keep in reduced}) > 1:
        raise ValueError(f"given {given}: expected only ratios or only numbers of tokens, as their order matters")
    if any(later >= earlier for earlier, later in pairwise(reduced)):
        ordered = ", ".join(f"{keep:g}" for keep in sorted(set(reduced), reverse=True))
        raise ValueError(
            f"given {given}: they are tested in this order until one fails, so each has to be smaller than the one "
            f"before; write [{ordered}]"
        )


def _metric(recipe: Recipe) -> Metric:
    """The first metric of the sets, which has to be the same one, with scores of 0 and 1."""
    names = list(dict.fromkeys((each.metrics or recipe.compare.metrics)[0] for each in recipe.compare.sets))
    usable = ", ".join(name for name, each in METRICS.items() if each.is_proportion)
    if len(names) != 1 or not METRICS[names[0]].is_proportion:
        raise ValueError(
            f"the first metric of each set is what is tested; given {', '.join(names)}, expected one of {usable} for "
            "all sets, because the test needs answers that are right or wrong"
        )
    return METRICS[names[0]]


def _with_checkpoint(recipe: Recipe, found: ResolvedModel) -> Recipe:
    """The recipe of a comparison of full tokens and of this checkpoint's reduction at each budget."""
    compare = recipe.compare
    method: dict[str, Any] = {"name": METHOD, "stages": [stage.to_dict() for stage in found.trained or ()]}
    if found.trained_tower is not None:
        method["tower"] = found.trained_tower.to_dict()
    changes: dict[str, Any] = {
        "checkpoints": {"model": found.location.source},
        "methods": (method,),
        "timing": False,
        "output_dir": str(Path(compare.output_dir or "runs/compare") / FOLDER),
    }
    return recipe.model_copy(update={"compare": compare.model_copy(update=changes)})


def _write(
    found: ResolvedModel, prepared: PreparedComparison, result: Calibration, metric: Metric, all_questions: bool
) -> None:
    assert result.chosen is not None
    stages: tuple[Reducer, ...] = next(c.stages for c in prepared.cells if c.budget == result.chosen.budget)
    sets = [
        {"name": name, "path": str(config.path), "questions": len(of_set), "digest": digest_of(of_set)}
        for name, config in prepared.sets.items()
        for of_set in [[question for question in prepared.questions if question.set == name]]
    ]
    about = {
        **result.to_dict(),
        "bound": result.chosen.bound(result.level),
        "questions": result.chosen.questions,
        "metric": metric.name,
        "one_question_per_image": not all_questions,
        "sets": sets,
    }
    folder = found.location.folder
    saved = read_reducer_file(folder)
    assert saved is not None
    changed = replace(saved, stages=stages, trained_stages=saved.trained_stages or saved.stages, calibration=about)
    replace_file(folder, REDUCER_FILE, changed.to_text())


def summary(found: CalibratedCheckpoint) -> str:
    """As the command prints it."""
    result, level, place = found.result, found.result.level, found.folder / REDUCER_FILE
    lines = [_budget_table(result), ""]
    if result.kinds:
        lines += [_kind_table(result), ""]
    goal = f"at most {100 * level.max_loss:g} points lost, confidence {level.confidence:g}"
    if result.chosen is None:
        lines.append(f"no budget passed ({goal}); {place} was not changed")
    else:
        lines.append(
            f"budget {result.chosen.budget} ({goal}): the loss is below {100 * result.chosen.bound(level):.2f} points; "
            f"written to {place}, and served from now on"
        )
    return "\n".join(lines)


def _budget_table(result: Calibration) -> str:
    rows = []
    for test in result.tests:
        outcome = "passed" if test.passed else "failed" if test.tested else "not tested"
        right = f"{100 * test.full_correct / test.questions:.1f}", f"{100 * _reduced_share(test):.1f}"
        counts = str(test.questions), str(test.lost), str(test.gained)
        rows.append([test.budget, *counts, *right, f"{100 * test.loss:+.2f}", f"{100 * test.bound(result.level):.2f}",
                     format_p(test.p), outcome])  # fmt: skip
    header = ["budget", "n", "lost", "gained", "full %", "reduced %", "points lost", "below", "p", "test"]
    return markdown_table(header, rows, align=True)


def _reduced_share(test: Any) -> float:
    return float((test.full_correct - test.lost + test.gained) / test.questions)


def _kind_table(result: Calibration) -> str:
    budgets = [test.budget for test in result.tests]
    rows = []
    for kind in result.kinds:
        losses = [f"{100 * loss:+.1f}" for loss in kind.losses()]
        smallest = kind.smallest(budgets, result.level.max_loss)
        full = f"{100 * kind.full_correct / kind.questions:.1f}"
        rows.append([kind.kind, str(kind.questions), full, *losses, smallest])
    header = ["kind", "n", "full %", *(f"lost at {budget}" for budget in budgets), "smallest within the loss"]
    return markdown_table(header, rows, align=True)
