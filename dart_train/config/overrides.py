"""`train.learning_rate=1e-4 data.train.0.limit=100`: values of a recipe given on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .errors import Problem, RecipeError, expected, join
from .text import parse


def override(data: dict[str, Any], assignments: Iterable[str]) -> list[Problem]:
    """Writes each `path=value` (the value is YAML) into the plain `data`; returns what cannot be written."""
    problems: list[Problem] = []
    for assignment in assignments:
        try:
            path, value = _split(assignment)
            _write(data, path, value)
        except RecipeError as error:
            problems.extend(error.problems)
    return problems


def _split(assignment: str) -> tuple[str, Any]:
    path, sign, text = assignment.partition("=")
    if not sign or not all(path.split(".")):
        raise RecipeError([expected("", assignment, "an override such as train.learning_rate=1e-4")])
    try:
        return path, parse(text)
    except RecipeError as error:
        raise RecipeError([Problem(path, problem.what) for problem in error.problems]) from error


def _write(data: dict[str, Any], path: str, value: Any) -> None:
    here: Any = data
    names, walked = path.split("."), ""
    for name, following in zip(names, [*names[1:], ""], strict=True):
        key = _key(here, name, walked)
        walked = join(walked, name)
        if not following:
            here[key] = value
            return
        if here[key] is None:
            here[key] = [] if following.isdigit() else {}
        here = here[key]


def _key(here: Any, name: str, path: str) -> Any:
    """`name` as a key or an index into `here`, which has it afterwards; a list grows by one at its end."""
    if isinstance(here, dict):
        here.setdefault(name, None)
        return name
    if not isinstance(here, list):
        raise RecipeError([expected(join(path, name), here, f"a section at {path}, to set {name} in")])
    if not name.isdigit() or int(name) > len(here):
        remedy = f"expected a number from 0 to {len(here)}"
        raise RecipeError([Problem(join(path, name), "no such item", remedy)])
    if int(name) == len(here):
        here.append(None)
    return int(name)
