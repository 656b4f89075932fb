"""Everything that a comparison's recipe names, looked at: question sets, their pictures, checkpoints, and whether the
methods go with them. No weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from ..attach import attach
from ..checkpoint import Found, find
from ..checkpoint.weights import bones, read_config
from ..data.findings import BadRow
from ..measure import METRICS
from ..pixels.families import shrink_of
from ..recipe import Recipe
from ..recipe.told import Told
from ..reducers import FewerPixels
from .cells import Cell, checkpoints_of
from .prompts import Prompts
from .questions import Question, open_sets, questions_of

_SHOWN = 5  # problems of one kind


@dataclass
class Named:
    """told: what is wrong with it."""

    questions: list[Question] = field(default_factory=list)
    found: dict[str, Found] = field(default_factory=dict)
    told: Told = field(default_factory=Told)


def look(recipe: Recipe, cells: Sequence[Cell], progress: bool) -> Named:
    named = Named()
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


def _questions(named: Named, recipe: Recipe, progress: bool) -> None:
    told = Told()
    for number in range(len(recipe.compare.sets)):
        told.of(lambda number=number: open_sets(recipe, number), f"compare.sets.{number}")  # type: ignore[misc]
    named.told.add(told.problems)
    sources = None if told.problems else named.told.of(lambda: open_sets(recipe))
    for number, source in enumerate(sources or []):
        rows = list(questions_of(source))
        bad = [str(row) for row in rows if isinstance(row, BadRow)]
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
            except BadRow as bad:
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
