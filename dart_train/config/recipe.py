"""A recipe: one YAML file that says everything about a run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from ..reduction.schedule import Distill
from .errors import Problem, RecipeError, expected
from .overrides import override
from .reader import Reader, plain
from .reduction import Reduction
from .rules import impossible
from .sections import Data, Log, Model, Parts
from .text import dump, parse
from .verbs import Compare, Train


@dataclass(frozen=True)
class Recipe:
    model: Model
    reduction: Reduction = field(default_factory=Reduction)
    parts: Parts = field(default_factory=Parts)
    data: Data = field(default_factory=Data)
    distill: Distill = field(default_factory=Distill)
    train: Train = field(default_factory=Train)
    log: Log = field(default_factory=Log)
    compare: Compare = field(default_factory=Compare)

    def to_dict(self) -> dict[str, Any]:
        """Mappings, lists and scalars; every default written out."""
        return {key: plain(getattr(self, key)) for key in self.__dataclass_fields__}

    def to_yaml(self) -> str:
        return dump(self.to_dict())


def load_recipe(path: str | Path, overrides: Iterable[str] = (), needs: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, `overrides` (such as `train.learning_rate=1e-4`) applied.

    needs: what the caller cannot do without, such as `data.train`. Raises RecipeError with all problems.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem("", f"cannot be read: {error}", _similar_file(path))
        raise RecipeError([problem], str(path)) from error
    return read_recipe(text, overrides, needs, name=path.stem, source=str(path))


def read_recipe(
    text: str,
    overrides: Iterable[str] = (),
    needs: Sequence[str] = (),
    name: str = "recipe",
    source: str = "recipe",
) -> Recipe:
    """The recipe in a YAML text; `name` names its run folder where it names none."""
    try:
        data = parse(text)
    except RecipeError as error:
        raise RecipeError(error.problems, source) from error
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise RecipeError([expected("", data, "a mapping with sections such as model and train")], source)
    problems = override(data, overrides)
    reader = Reader(Recipe, problems)
    recipe = reader.read(Recipe, data)
    for problem in [*_missing(recipe, needs), *impossible(recipe)]:
        if not any(f"{known.path}.".startswith(f"{problem.path}.") for known in problems):
            problems.append(problem)
    if problems:
        raise RecipeError(problems, source, recipe)
    return _with_folders(recipe, name)


def _missing(recipe: Recipe, needs: Sequence[str]) -> Iterator[Problem]:
    for place in needs:
        if not attrgetter(place)(recipe):
            yield Problem(place, "missing", "this verb cannot do without")


def _with_folders(recipe: Recipe, name: str) -> Recipe:
    run = recipe.train.output_dir or f"runs/{name}"
    comparison = recipe.compare.output_dir or f"{run}/compare"
    return replace(
        recipe,
        train=replace(recipe.train, output_dir=run),
        compare=replace(recipe.compare, output_dir=comparison),
    )


def _similar_file(path: Path) -> str:
    beside = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else ""
