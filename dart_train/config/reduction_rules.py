"""Rules of the sections `reduction`, `scorer` and `distill`."""

from __future__ import annotations

from collections.abc import Iterator

from ..reduction.schedule import Elastic, Fixed, Progressive
from .errors import ConfigIssue
from .schema import Recipe


def check_reduction(recipe: Recipe) -> Iterator[ConfigIssue]:
    reduction, path = recipe.reduction, "reduction.schedule"
    schedule = reduction.schedule
    if not isinstance(schedule, Fixed) and len(reduction.stages) > 1:
        remedy = "use kind fixed, or one stage"
        yield ConfigIssue(path, f"{schedule.kind} moves one budget, given {len(reduction.stages)} stages", remedy)
    for i, stage in enumerate(reduction.stages):
        if "keep" not in stage and stage.get("method") != "keep_all":
            yield ConfigIssue(f"reduction.stages.{i}.keep", "missing", "expected a number of tokens or a ratio")
    if isinstance(schedule, Elastic) and not schedule.choices:
        yield ConfigIssue(f"{path}.choices", "empty", "name at least one budget, such as [1.0, 0.333]")
    if isinstance(schedule, Progressive):
        for when in ("start", "end"):
            low, high = getattr(schedule, f"{when}_low"), getattr(schedule, f"{when}_high")
            if low > high:
                remedy = f"expected {when}_low <= {when}_high"
                yield ConfigIssue(f"{path}.{when}_low", f"{low} is above {when}_high {high}", remedy)


def check_scorer(recipe: Recipe) -> Iterator[ConfigIssue]:
    if not recipe.has_scorer or not recipe.data.train:
        return
    if not recipe.scorer.train and recipe.scorer.path is None:
        remedy = "set scorer.train to true, or scorer.path to a run, checkpoint or export that has them"
        yield ConfigIssue("scorer.train", "false, and no trained scorers are given", remedy)
    scorer = recipe.scorer
    if recipe.trains_scorer and not scorer.attention and not scorer.task:
        remedy = "give it or scorer.task a weight, or set train: false"
        yield ConfigIssue("scorer.attention", "0, as is scorer.task, so that scorers would not learn", remedy)
    if recipe.trains_scorer and scorer.temperature_end > scorer.temperature_start:
        what = f"{scorer.temperature_end} is above temperature_start {scorer.temperature_start}"
        yield ConfigIssue("scorer.temperature_end", what, "expected temperature_end <= temperature_start")
    if recipe.trains_scorer and scorer.attention and recipe.distill.enabled and recipe.distill.teacher != "full":
        what = f"{recipe.distill.teacher}, but scorers learn from the attention of a teacher at full tokens"
        yield ConfigIssue("distill.teacher", what, "choose full, or scorer.attention 0")


def check_distill(recipe: Recipe) -> Iterator[ConfigIssue]:
    if recipe.distill.enabled and not recipe.reduction.stages:
        remedy = "set distill.enabled to false, or choose a reduction"
        yield ConfigIssue("distill.enabled", "without a reduction teacher and student are the same", remedy)
    own, given = recipe.distill.teacher == "reduction", recipe.distill.reduction is not None
    if recipe.distill.enabled and own and not given:
        what = "missing, but distill.teacher is reduction"
        yield ConfigIssue("distill.reduction", what, "give the teacher's, such as {method: dart, layer: 2}")
    if given and not own:
        what = f"given, but distill.teacher is {recipe.distill.teacher}"
        yield ConfigIssue("distill.reduction", what, "choose teacher: reduction, or leave it out")


def check_stages(recipe: Recipe) -> Iterator[ConfigIssue]:
    """What the reducers report about their options. Imports torch."""
    from ..reduction import from_config, tower_from_config

    for i, stage in enumerate(recipe.reduction.stages):
        try:
            from_config(stage)
        except ValueError as error:
            yield ConfigIssue(f"reduction.stages.{i}", str(error))
    if recipe.reduction.tower is not None:
        try:
            tower_from_config(recipe.reduction.tower)
        except ValueError as error:
            yield ConfigIssue("reduction.tower", str(error).removeprefix("tower: "))


def check_teacher_stage(recipe: Recipe) -> Iterator[ConfigIssue]:
    """What the teacher's own reduction reports. Imports torch."""
    if not recipe.distill.enabled or recipe.distill.reduction is None or not recipe.reduction.stages:
        return
    from ..reduction import from_config
    from ..reduction.teacher_stage import teacher_stage, why_not_teacher_stage

    try:
        student = from_config(recipe.reduction.stages[0])
    except ValueError:
        return  # reported as that of reduction.stages
    try:
        problem = why_not_teacher_stage(teacher_stage(recipe.distill, student.keep), student)
    except ValueError as error:
        problem = str(error)
    if problem:
        yield ConfigIssue("distill.reduction", problem)
