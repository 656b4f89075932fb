"""Reads recipes: YAML, then overrides, then the schema, then the rules; all issues in one exception."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from .errors import ConfigIssue, RecipeError, join, unexpected
from .rules import find_conflicts, find_method_errors
from .schema import Recipe
from .validation import validate
from .yaml import parse


def load_recipe(path: str | Path, overrides: Iterable[str] = (), needs: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, `overrides` (such as `train.learning_rate=1e-4`) applied.

    needs: keys that the caller requires, such as `data.train`. Raises RecipeError with all issues.
    """
    return read_recipe(read_text(path), overrides, needs, name=Path(path).stem, source=str(path))


def read_recipe(
    text: str,
    overrides: Iterable[str] = (),
    needs: Sequence[str] = (),
    name: str = "recipe",
    source: str = "recipe",
) -> Recipe:
    """The recipe in a YAML text. `name` names its run folder where the recipe does not."""
    overrides = tuple(overrides)
    recipe, issues = check_recipe(text, overrides, needs, name, source)
    if recipe is not None and not issues:
        return recipe
    methods = any(word in given for given in (text, *overrides) for word in ("reduction", "methods"))
    checked = "torch" in sys.modules or not methods
    raise RecipeError(issues, source, "" if checked else "The options of methods are checked once these are corrected.")


def check_recipe(
    text: str,
    overrides: Iterable[str] = (),
    needs: Sequence[str] = (),
    name: str = "recipe",
    source: str = "recipe",
) -> tuple[Recipe | None, list[ConfigIssue]]:
    """The recipe, with defaults in place of what is wrong, and all issues. Raises RecipeError where the text is not a
    YAML mapping."""
    data = parse_mapping(text, source, "a mapping with sections such as model and train")
    issues = apply_overrides(data, overrides)
    reduction = data.get("reduction")  # in the form that the issues refer to
    recipe, found = validate(Recipe, data)
    _add(issues, found, reduction)
    if recipe is None:
        return None, issues
    _add(issues, [*_missing(recipe, needs), *find_conflicts(recipe)], reduction)
    if not issues or "torch" in sys.modules:  # importing it takes seconds, which a misspelt key need not cost
        _add(issues, find_method_errors(recipe), reduction)
    return _with_folders(recipe, name), issues


def read_text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        issue = ConfigIssue("", f"cannot be read: {error}", _similar_file(Path(path)))
        raise RecipeError([issue], str(path)) from error


def parse_mapping(text: str, source: str, expected: str) -> dict[str, Any]:
    try:
        data = parse(text)
    except RecipeError as error:
        raise RecipeError(error.issues, source) from error
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise RecipeError([unexpected("", data, expected)], source)
    return data


def _add(issues: list[ConfigIssue], found: Iterable[ConfigIssue], reduction: Any) -> None:
    """Leaves out what follows from an issue at the same key or below it."""
    for each in found:
        issue = ConfigIssue(_path_as_written(each.path, reduction), each.what, each.remedy)
        if not any(f"{known.path}.".startswith(f"{issue.path}.") for known in issues):
            issues.append(issue)


def _path_as_written(path: str, reduction: Any) -> str:
    """The schema knows `reduction.stages.0`; the recipe may have one stage without a list, or a list alone."""
    prefix, inside = "reduction.stages", isinstance(reduction, Mapping) and "stages" in reduction
    if inside or not f"{path}.".startswith(f"{prefix}."):
        return path
    keys = path.split(".")[2:]
    return ".".join(["reduction", *(keys if isinstance(reduction, list) else keys[1:])])


def _missing(recipe: Recipe, needs: Sequence[str]) -> Iterator[ConfigIssue]:
    for place in needs:
        if not attrgetter(place)(recipe):
            yield ConfigIssue(place, "missing", "required by this command")


def _with_folders(recipe: Recipe, name: str) -> Recipe:
    run = recipe.train.output_dir or f"runs/{name}"
    comparison = recipe.compare.output_dir or f"{run}/compare"
    return recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"output_dir": run}),
            "compare": recipe.compare.model_copy(update={"output_dir": comparison}),
        }
    )


def _similar_file(path: Path) -> str:
    neighbours = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, neighbours, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else ""


def apply_overrides(data: dict[str, Any], assignments: Iterable[str]) -> list[ConfigIssue]:
    """Writes each `path=value` (the value is YAML) into the plain `data`. Returns what cannot be written."""
    issues: list[ConfigIssue] = []
    for assignment in assignments:
        try:
            path, value = _split(assignment)
            _write(data, path, value)
        except RecipeError as error:
            issues.extend(error.issues)
    return issues


def _split(assignment: str) -> tuple[str, Any]:
    path, sign, text = assignment.partition("=")
    if not sign or not all(path.split(".")):
        raise RecipeError([unexpected("", assignment, "an override such as train.learning_rate=1e-4")])
    try:
        return path, parse(text)
    except RecipeError as error:
        raise RecipeError([ConfigIssue(path, issue.what) for issue in error.issues]) from error


def _write(data: dict[str, Any], path: str, value: Any) -> None:
    section: Any = data
    names, walked = path.split("."), ""
    for name, following in zip(names, [*names[1:], ""], strict=True):
        key = _key(section, name, walked)
        walked = join(walked, name)
        if not following:
            section[key] = value
            return
        if section[key] is None:
            section[key] = [] if following.isdigit() else {}
        section = section[key]


def _key(section: Any, name: str, path: str) -> Any:
    """`name` as a key or an index of `section`, which then has it; a list grows by one item at its end."""
    if isinstance(section, dict):
        section.setdefault(name, None)
        return name
    if not isinstance(section, list):
        raise RecipeError([unexpected(join(path, name), section, f"a section at {path}, to set {name} in")])
    if not name.isdigit() or int(name) > len(section):
        remedy = f"expected a number from 0 to {len(section)}"
        raise RecipeError([ConfigIssue(join(path, name), "no such item", remedy)])
    if int(name) == len(section):
        section.append(None)
    return int(name)
