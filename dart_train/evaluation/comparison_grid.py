"""The grid of a comparison, checkpoints x methods x budgets, and everything that it names, checked before any weight
is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..checkpoints import ResolvedModel, resolve
from ..checkpoints.scorer_file import check_scorers
from ..common.io import ProblemCollector
from ..common.metrics import METRICS
from ..config import ConfigIssue, QuestionSet, Recipe, RecipeError, check_recipe, read_text
from ..config.methods import Given, Method, expand_reduction_alias, labels, read_method
from ..data.images import ImageStore
from ..data.issues import BadRowError
from ..data.videos import media_shape
from ..hooks import attach
from ..models.loading import build_meta_model
from ..models.processors import video_problem
from ..models.resize import resizer_for
from ..reduction import FewerPixels, KeepAll, Reducer, TowerDART
from ..reduction.budget import Keep
from .prompts import QuestionEncoder
from .questions import Question, open_sets, questions_of
from .second_turn import second_turns, set_name

FULL = "full"  # method and budget of the cell that keeps all tokens
BASE = "base"  # name of the model where the recipe names no checkpoints
_PROBLEMS_SHOWN = 5  # of one question set
# Without valid values of these keys, the cells of a recipe are not known.
_GRID_KEYS = ("compare.methods", "compare.budgets", "compare.checkpoints", "reduction")


@dataclass(frozen=True)
class ComparisonCell:
    """One checkpoint with one method at one budget. stages: of the reduction; empty for full tokens."""

    checkpoint: str
    method: str
    keep: Keep
    stages: tuple[Reducer, ...] = field(hash=False)  # options of an external reducer may be lists
    tower: TowerDART | None = None

    @property
    def all_stages(self) -> list[Reducer | TowerDART]:
        """What `attach` takes."""
        return [*([] if self.tower is None else [self.tower]), *self.stages]

    @property
    def reducer(self) -> Reducer | None:
        """The only stage; None for full tokens and for several stages."""
        return self.stages[0] if len(self.stages) == 1 else None

    @property
    def budget(self) -> str:
        """As written in the tables: `full`, a ratio such as 0.111, or a number of tokens such as 64."""
        return FULL if _keeps_all(self.keep) else f"{self.keep:g}"

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.checkpoint, self.method, self.budget)

    @property
    def name(self) -> str:
        return f"{self.checkpoint} / {self.method}" + (f" / {self.budget}" if self.stages else "")


def checkpoint_paths(recipe: Recipe) -> dict[str, str]:
    """Name -> folder or hub id."""
    return dict(recipe.compare.checkpoints) or {BASE: recipe.model.path}


def grid_cells(recipe: Recipe) -> list[ComparisonCell]:
    """Each checkpoint with full tokens, then with every method at each of its budgets."""
    cells = []
    for checkpoint in checkpoint_paths(recipe):
        cells.append(ComparisonCell(checkpoint, FULL, 1.0, ()))
        for label, method in _methods(recipe).items():
            if method.checkpoints and checkpoint not in method.checkpoints:
                continue
            budgets = method.budgets or recipe.compare.budgets
            keeps = [1.0] if method.stages[0].name == KeepAll.name else _distinct_reduced(budgets)
            cells += [ComparisonCell(checkpoint, label, keep, method.at(keep), method.tower) for keep in keeps]
    return cells


def _distinct_reduced(budgets: Sequence[Keep]) -> list[Keep]:
    """Each budget once, in the order of the recipe, without full tokens."""
    return list({(type(keep), keep): keep for keep in budgets if not _keeps_all(keep)}.values())


def _keeps_all(keep: Keep) -> bool:
    return isinstance(keep, float) and keep == 1.0


def _methods(recipe: Recipe) -> dict[str, Method]:
    """The methods of the recipe, by label."""
    trained = recipe.reduction.reducers()
    given = expand_reduction_alias(recipe.compare.methods, recipe.reduction.stages, recipe.reduction.tower)
    return dict(zip(labels(given), (_with_recipe_options(each, trained) for each in given), strict=True))


def _with_recipe_options(given: Given, trained: Sequence[Reducer]) -> Method:
    """A method given by its name alone takes the options of the recipe's reduction if that is the same method, and
    its layer if it is another one."""
    method = read_method(given)
    if not isinstance(given, str) or len(trained) != 1:
        return method
    (bare,), (own,) = method.stages, trained
    return Method((own if type(own) is type(bare) else replace(bare, layer=own.layer, per=own.per),))


@dataclass
class ResolvedInputs:
    """What the recipe of a comparison names, opened; `problems` has what could not be."""

    questions: list[Question] = field(default_factory=list)
    found: dict[str, ResolvedModel] = field(default_factory=dict)
    problems: ProblemCollector = field(default_factory=ProblemCollector)


@dataclass(frozen=True)
class PreparedComparison:
    """found: of each checkpoint, by name. sets: the configuration of each question set, by name."""

    recipe: Recipe
    cells: list[ComparisonCell]
    questions: list[Question]
    found: dict[str, ResolvedModel]
    folder: Path
    sets: dict[str, QuestionSet]

    @property
    def paths(self) -> dict[str, str]:
        return checkpoint_paths(self.recipe)

    def cells_of(self, checkpoint: str) -> list[ComparisonCell]:
        return [cell for cell in self.cells if cell.checkpoint == checkpoint]


def set_configs(recipe: Recipe) -> dict[str, QuestionSet]:
    """The configuration of each set, by the name that its questions have."""
    found = {}
    for source, config in zip(open_sets(recipe), recipe.compare.sets, strict=True):
        found[source.name] = config
        found |= {set_name(source.name, mode): config for mode in config.second_turn}
    return found


def open_recipe(path: str | Path, overrides: Iterable[str] = (), progress: bool = True) -> Recipe:
    """Loads a recipe. If it has errors, those of the question sets and checkpoints that it names are reported too."""
    recipe, issues = check_recipe(read_text(path), overrides, ("compare.sets",), Path(path).stem, str(path))
    if recipe is not None and not issues:
        return recipe
    keys = [issue.path for issue in issues]
    if recipe is not None and "model.path" not in keys:
        grid_is_valid = not any(key.startswith(_GRID_KEYS) for key in keys)
        more = resolve_inputs(recipe, grid_cells(recipe) if grid_is_valid else [], progress).problems.problems
        issues += [ConfigIssue("", each) for each in more]
    raise RecipeError(issues, str(path))


def prepare(recipe: Recipe, progress: bool = True) -> PreparedComparison:
    """Raises one ValueError with everything that is wrong."""
    cells, folder = grid_cells(recipe), Path(recipe.compare.output_dir)
    inputs = resolve_inputs(recipe, cells, progress)
    inputs.problems.collect(lambda: folder.mkdir(parents=True, exist_ok=True), "compare.output_dir")
    inputs.problems.raise_if_any("cannot run the comparison")
    return PreparedComparison(recipe, cells, inputs.questions, inputs.found, folder, set_configs(recipe))


def resolve_inputs(recipe: Recipe, cells: Sequence[ComparisonCell], progress: bool) -> ResolvedInputs:
    """Opens question sets, headers of images and checkpoints, and tries each method on a model without weights."""
    inputs = ResolvedInputs()
    _resolve_questions(inputs, recipe, progress)
    for name, path in checkpoint_paths(recipe).items():
        key = f"compare.checkpoints.{name}" if recipe.compare.checkpoints else "model.path"
        found = inputs.problems.collect(lambda path=path: _find_checkpoint(recipe, path), key)  # type: ignore[misc]
        if found is not None:
            inputs.found[name] = found
            of_checkpoint = [cell for cell in cells if cell.checkpoint == name]
            inputs.problems.add(_incompatible_methods(found, of_checkpoint), key)
            inputs.problems.add(_incompatible_videos(found, of_checkpoint, inputs.questions, recipe), key)
    return inputs


def _find_checkpoint(recipe: Recipe, path: str) -> ResolvedModel:
    model = recipe.model
    return resolve(
        path,
        attn_implementation=model.attn_implementation,
        revision=model.revision if path == model.path else None,
        trust_remote_code=model.trust_remote_code,
    )


def _resolve_questions(inputs: ResolvedInputs, recipe: Recipe, progress: bool) -> None:
    each_set = ProblemCollector()
    for number in range(len(recipe.compare.sets)):
        each_set.collect(lambda number=number: open_sets(recipe, number), f"compare.sets.{number}")  # type: ignore[misc]
    inputs.problems.add(each_set.problems)
    sources = None if each_set.problems else inputs.problems.collect(lambda: open_sets(recipe))
    for number, source in enumerate(sources or []):
        rows = list(questions_of(source))
        questions = [row for row in rows if isinstance(row, Question)]
        bad = [str(row) for row in rows if isinstance(row, BadRowError)]
        bad += _missing_images(questions, source.name, progress)
        bad += ["the set is empty"] if not rows else _unscorable(questions, recipe, number)
        hidden = len(bad) - _PROBLEMS_SHOWN
        more = [f"and {hidden} more; `data check` lists all"] if hidden > 0 else []
        inputs.problems.add([*bad[:_PROBLEMS_SHOWN], *more], f"compare.sets.{number}")
        inputs.questions += questions
        if not bad:
            key = f"compare.sets.{number}"
            for mode in recipe.compare.sets[number].second_turn:
                added = inputs.problems.collect(lambda mode=mode, of=questions: second_turns(of, mode), key)  # type: ignore[misc]
                inputs.questions += added or []


def _missing_images(questions: Sequence[Question], name: str, progress: bool) -> list[str]:
    """Files that are missing, or not images or videos, each reported once; only headers are read."""
    found: dict[str, None] = {}
    for question in tqdm(questions, desc=f"images of {name}", leave=False, disable=not progress or None):
        for ref in question.refs:
            try:
                media_shape(question.store, ref)
            except BadRowError as bad:
                found[str(bad.message)] = None
    return list(found)


def _unscorable(questions: Sequence[Question], recipe: Recipe, number: int) -> list[str]:
    """The problem of a set to which none of its metrics applies."""
    config = recipe.compare.sets[number]
    usual = config.metrics or recipe.compare.metrics
    names = {name for q in questions for name in {*usual, *config.kind_metrics.get(q.kind, ())} if name in METRICS}
    if not questions or any(METRICS[name].score("", q.answers) is not None for name in names for q in questions):
        return []
    listed = ", ".join(sorted(names))
    return [f"{listed} cannot score any of its {len(questions)} questions; choose another metric"] if names else []


def _incompatible_videos(
    found: ResolvedModel, cells: Sequence[ComparisonCell], questions: Sequence[Question], recipe: Recipe
) -> list[str]:
    """What keeps this model from being asked about videos, where questions have some."""
    with_videos = [question for question in questions if question.videos]
    if not with_videos:
        return []
    what = f"{len(with_videos)} of {len(questions)} questions have a video, such as {with_videos[0].id}"
    if problem := video_problem(found.processor):
        return [f"{what}, and {problem}"]
    problems = ProblemCollector()
    problems.collect(lambda: ImageStore.from_config(recipe.data).leave_limits_to(found.processor))
    if any(isinstance(cell.reducer, FewerPixels) for cell in cells):
        problems.add([f"{what}, and fewer_pixels makes images smaller, not videos; leave one of them out"])
    return problems.problems


def _check_attachable(model: Any, cell: ComparisonCell, found: ResolvedModel) -> None:
    with attach(model, cell.all_stages) as attached:
        if attached.scorers:
            check_scorers(found.location.folder, attached.scorers, model)


def _incompatible_methods(found: ResolvedModel, cells: Sequence[ComparisonCell]) -> list[str]:
    """Methods that do not work with this model, and a processor that cannot build prompts."""
    problems = ProblemCollector()
    problems.collect(lambda: QuestionEncoder(found.processor))
    model = build_meta_model(found.source)
    for cell in cells:
        if isinstance(cell.reducer, FewerPixels):
            problems.collect(lambda: resizer_for(found.processor), cell.method)
        elif cell.stages:
            problems.collect(lambda cell=cell: _check_attachable(model, cell, found), cell.method)  # type: ignore[misc]
    return list(dict.fromkeys(problems.problems))
