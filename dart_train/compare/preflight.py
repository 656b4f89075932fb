"""Everything about a comparison that can be wrong and is cheap to find out: told in one message, before any model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from ..attach import attach
from ..checkpoint import Found, find
from ..checkpoint.weights import bones, read_config
from ..data.findings import BadRow
from ..pixels.families import shrink_of
from ..recipe import QuestionSet, Recipe
from ..reducers import FewerPixels
from .cells import Cell, cells_of, checkpoints_of
from .prompts import Prompts
from .questions import Question, metrics_of, open_sets, questions_of

T = TypeVar("T")
_SHOWN = 5  # problems of one kind


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


def prepare(recipe: Recipe, progress: bool = True) -> Prepared:
    """Raises ValueError with all that is wrong."""
    wrong: list[str] = []
    cells, folder = cells_of(recipe), Path(recipe.compare.output_dir)
    questions = _told(wrong, "", lambda: _questions(recipe, wrong, progress)) or []
    found: dict[str, Found] = {}
    for name, path in checkpoints_of(recipe).items():
        place = f"compare.checkpoints.{name}" if recipe.compare.checkpoints else "model.path"
        one = _told(wrong, place, lambda path=path: _find(recipe, path))  # type: ignore[misc]
        if one is not None:
            found[name] = one
            wrong += [f"{place}: {problem}" for problem in _unfit(one, [c for c in cells if c.checkpoint == name])]
    _told(wrong, "compare.output_dir", lambda: folder.mkdir(parents=True, exist_ok=True))
    if wrong:
        count = "1 problem" if len(wrong) == 1 else f"{len(wrong)} problems"
        raise ValueError("\n".join([f"this cannot be compared: {count}", *(f"  {each}" for each in wrong)]))
    return Prepared(recipe, cells, questions, found, folder, metrics_of(recipe))


def _find(recipe: Recipe, path: str) -> Found:
    say = recipe.model
    revision = say.revision if path == say.path else None
    return find(
        path,
        attn_implementation=say.attn_implementation,
        revision=revision,
        trust_remote_code=say.trust_remote_code,
    )


def _questions(recipe: Recipe, wrong: list[str], progress: bool) -> list[Question]:
    found: list[Question] = []
    for number in range(len(recipe.compare.sets)):
        _told(wrong, f"compare.sets.{number}", lambda number=number: open_sets(recipe, number))  # type: ignore[misc]
    for number, source in enumerate([] if wrong else open_sets(recipe)):
        rows = list(questions_of(source))
        bad = [str(row) for row in rows if isinstance(row, BadRow)]
        asked = [row for row in rows if isinstance(row, Question)]
        bad += _unseen(asked, source.name, progress)
        if not rows:
            bad.append("the set is empty")
        wrong += [f"compare.sets.{number}: {each}" for each in bad[:_SHOWN]]
        if len(bad) > _SHOWN:
            wrong.append(f"compare.sets.{number}: and {len(bad) - _SHOWN} more; `data check` tells all")
        found += asked
    return found


def _unseen(questions: Sequence[Question], name: str, progress: bool) -> list[str]:
    """Pictures that are missing or no pictures, each told once; only their headers are read."""
    seen: dict[str, None] = {}
    for question in tqdm(questions, desc=f"pictures of {name}", leave=False, disable=not progress or None):
        for ref in question.refs:
            try:
                question.store.size(ref)
            except BadRow as bad:
                seen[str(bad.message)] = None
    return list(seen)


def _unfit(found: Found, cells: Sequence[Cell]) -> Iterator[str]:
    """Methods that do not go with this model, and a processor that cannot be asked."""
    told: list[str] = []
    _told(told, "", lambda: Prompts(found.processor))
    model = bones(read_config(found.source.path, found.source.revision, found.source.trust_remote_code))
    for cell in cells:
        if isinstance(cell.reducer, FewerPixels):
            _told(told, cell.method, lambda: shrink_of(found.processor))
        elif cell.stages:
            _told(told, cell.method, lambda stages=cell.stages: attach(model, stages).remove())  # type: ignore[misc]
    yield from dict.fromkeys(told)


def _told(wrong: list[str], place: str, act: Callable[[], T]) -> T | None:
    """What `act` gives, or None where it fails, which is noted."""
    try:
        return act()
    except (ValueError, NotImplementedError, OSError, ImportError) as error:
        known = isinstance(error, ValueError | NotImplementedError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        wrong.append(f"{place}: {text}" if place else text)
        return None
