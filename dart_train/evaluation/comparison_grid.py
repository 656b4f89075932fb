"""Everything about a comparison that can be wrong and is cheap to find out: told in one message, before any model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from ..checkpoints import Found, find
from ..common.metrics import METRICS
from ..config import Problem, QuestionSet, Recipe, RecipeError, load_recipe
from ..config.methods import Given, Method, expand_reduction_alias, labels, read_method
from ..config.told import Told
from ..data.issues import BadRowError
from ..hooks import attach
from ..models.loading import bones, read_config
from ..models.resize.families import shrink_of
from ..reduction import FewerPixels, KeepAll, Reducer
from ..reduction.budget import Keep
from .prompts import Prompts
from .questions import Question, metrics_of, open_sets, questions_of

# The rows of a comparison: checkpoints x methods x budgets, and each checkpoint once with full tokens.

FULL = "full"
BASE = "base"


@dataclass(frozen=True)
class Cell:
    """stages: of the reduction; none: full tokens."""

    checkpoint: str
    method: str
    keep: Keep
    stages: tuple[Reducer, ...] = field(hash=False)  # a stranger's options may be lists

    @property
    def reducer(self) -> Reducer | None:
        """The only stage; None where there is none, or several."""
        return self.stages[0] if len(self.stages) == 1 else None

    @property
    def budget(self) -> str:
        """As it stands in the tables: `full`, a ratio such as 0.111, or a number of tokens such as 64."""
        return FULL if _is_full(self.keep) else f"{self.keep:g}"

    @property
    def name(self) -> str:
        return f"{self.checkpoint} / {self.method}" + (f" / {self.budget}" if self.stages else "")


def checkpoints_of(recipe: Recipe) -> dict[str, str]:
    """Name: folder or hub id."""
    return dict(recipe.compare.checkpoints) or {BASE: recipe.model.path}


def cells_of(recipe: Recipe) -> list[Cell]:
    found = []
    for checkpoint in checkpoints_of(recipe):
        found.append(Cell(checkpoint, FULL, 1.0, ()))
        for label, method in methods_of(recipe).items():
            whole, budgets = method.stages[0].name == KeepAll.name, method.budgets or recipe.compare.budgets
            keeps = [1.0] if whole else _distinct(budgets)
            found += [Cell(checkpoint, label, keep, method.at(keep)) for keep in keeps]
    return found


def _distinct(budgets: Sequence[Keep]) -> list[Keep]:
    """Once each, full tokens apart, in the order of the recipe."""
    found = {(type(keep), keep): keep for keep in budgets if not _is_full(keep)}
    return list(found.values())


def methods_of(recipe: Recipe) -> dict[str, Method]:
    """By their labels. A method that is named alone has the options of the recipe's reduction where that is the same
    method, and its layer where it is another."""
    given, trained = (
        expand_reduction_alias(recipe.compare.methods, recipe.reduction.stages),
        recipe.reduction.reducers(),
    )
    return dict(zip(labels(given), (_method(each, trained) for each in given), strict=True))


def _method(given: Given, trained: Sequence[Reducer]) -> Method:
    method = read_method(given)
    if not isinstance(given, str) or len(trained) != 1:
        return method
    (bare,), (own,) = method.stages, trained
    return Method((own if type(own) is type(bare) else replace(bare, layer=own.layer, per=own.per),))


def _is_full(keep: Keep) -> bool:
    return isinstance(keep, float) and keep == 1.0


# Everything that a comparison's recipe names, looked at: question sets, their pictures, checkpoints, and whether the
# methods go with them. No weight is read.

_SHOWN = 5  # problems of one kind


@dataclass
class ResolvedInputs:
    """told: what is wrong with it."""

    questions: list[Question] = field(default_factory=list)
    found: dict[str, Found] = field(default_factory=dict)
    told: Told = field(default_factory=Told)


def look(recipe: Recipe, cells: Sequence[Cell], progress: bool) -> ResolvedInputs:
    named = ResolvedInputs()
    _questions(named, recipe, progress)
    for name, path in checkpoints_of(recipe).items():
        place = f"compare.checkpoints.{name}" if recipe.compare.checkpoints else "model.path"
        one = named.told.of(lambda path=path: _find(recipe, path), place)  # type: ignore[misc]
        if one is not None:
            named.found[name] = one
            named.told.add(_unfit(one, [cell for cell in cells if cell.checkpoint == name]), place)
    return named


def _find(recipe: Recipe, path: str) -> Found:
    say = recipe.model
    revision = say.revision if path == say.path else None
    return find(
        path,
        attn_implementation=say.attn_implementation,
        revision=revision,
        trust_remote_code=say.trust_remote_code,
    )


def _questions(named: ResolvedInputs, recipe: Recipe, progress: bool) -> None:
    told = Told()
    for number in range(len(recipe.compare.sets)):
        told.of(lambda number=number: open_sets(recipe, number), f"compare.sets.{number}")  # type: ignore[misc]
    named.told.add(told.problems)
    sources = None if told.problems else named.told.of(lambda: open_sets(recipe))
    for number, source in enumerate(sources or []):
        rows = list(questions_of(source))
        bad = [str(row) for row in rows if isinstance(row, BadRowError)]
        asked = [row for row in rows if isinstance(row, Question)]
        bad += _unseen(asked, source.name, progress)
        bad += ["the set is empty"] if not rows else _unjudged(asked, recipe, number)
        more = [f"and {len(bad) - _SHOWN} more; `data check` tells all"] if len(bad) > _SHOWN else []
        named.told.add([*bad[:_SHOWN], *more], f"compare.sets.{number}")
        named.questions += asked


def _unseen(questions: Sequence[Question], name: str, progress: bool) -> list[str]:
    """Pictures that are missing or no pictures, each told once; only their headers are read."""
    seen: dict[str, None] = {}
    for question in tqdm(questions, desc=f"pictures of {name}", leave=False, disable=not progress or None):
        for ref in question.refs:
            try:
                question.store.size(ref)
            except BadRowError as bad:
                seen[str(bad.message)] = None
    return list(seen)


def _unjudged(questions: Sequence[Question], recipe: Recipe, number: int) -> list[str]:
    """A set that none of its metrics can say anything of."""
    chosen = recipe.compare.sets[number]
    usual = chosen.metrics or recipe.compare.metrics
    named = {name for q in questions for name in {*usual, *chosen.kind_metrics.get(q.kind, ())} if name in METRICS}
    if not questions or any(METRICS[name].score("", q.answers) is not None for name in named for q in questions):
        return []
    told = ", ".join(sorted(named))
    return [f"{told} can judge none of its {len(questions)} questions; choose another metric"] if named else []


def _unfit(found: Found, cells: Sequence[Cell]) -> list[str]:
    """Methods that do not go with this model, and a processor that cannot be asked."""
    told = Told()
    told.of(lambda: Prompts(found.processor))
    model = bones(read_config(found.source.path, found.source.revision, found.source.trust_remote_code))
    for cell in cells:
        if isinstance(cell.reducer, FewerPixels):
            told.of(lambda: shrink_of(found.processor), cell.method)
        elif cell.stages:
            told.of(lambda stages=cell.stages: attach(model, stages).remove(), cell.method)  # type: ignore[misc]
    return list(dict.fromkeys(told.problems))


NEEDS = ("compare.sets",)
_CHOOSING = ("compare.methods", "compare.budgets", "compare.checkpoints", "reduction")


@dataclass(frozen=True)
class Prepared:
    recipe: Recipe
    cells: list[Cell]
    questions: list[Question]
    found: dict[str, Found]
    folder: Path
    sets: dict[str, QuestionSet]

    @property
    def paths(self) -> dict[str, str]:
        return checkpoints_of(self.recipe)

    def cells_at(self, checkpoint: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.checkpoint == checkpoint]


def open_recipe(path: str | Path, overrides: Iterable[str] = (), progress: bool = True) -> Recipe:
    """Where the recipe is wrong, all that is wrong with what it names is told along with that."""
    try:
        return load_recipe(path, overrides, NEEDS)
    except RecipeError as error:
        if error.read is None or not all(checkpoints_of(error.read).values()):
            raise
        sound = not any(problem.path.startswith(_CHOOSING) for problem in error.problems)  # or there are no rows
        more = look(error.read, cells_of(error.read) if sound else [], progress).told.problems
        raise RecipeError([*error.problems, *(Problem("", each) for each in more)], error.source) from error


def prepare(recipe: Recipe, progress: bool = True) -> Prepared:
    """Raises ValueError with all that is wrong."""
    cells, folder = cells_of(recipe), Path(recipe.compare.output_dir)
    named = look(recipe, cells, progress)
    named.told.of(lambda: folder.mkdir(parents=True, exist_ok=True), "compare.output_dir")
    named.told.check("this cannot be compared")
    return Prepared(recipe, cells, named.questions, named.found, folder, metrics_of(recipe))
