"""From plain data to sections. All errors of pydantic become issues: path, value, and what was expected."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .errors import ConfigIssue, join, unexpected, unknown_key
from .fields import Section, Words, is_section, section_of

S = TypeVar("S", bound=Section)
_NAMES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
    Any: "a value",
}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_Path = tuple[str | int, ...]


def validate(cls: type[S], data: Any) -> tuple[S | None, list[ConfigIssue]]:
    """The section that `data` describes and all issues. With issues, what was wrong has its default, so that other
    checks can go over the rest; None where that is not possible."""
    try:
        return cls.model_validate(data), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    issues: dict[str, ConfigIssue] = {}
    for each in errors:
        issue = _issue(cls, data, each)
        issues.setdefault(issue.path, issue)
    return _validate_rest(cls, data, errors), list(issues.values())


def _validate_rest(cls: type[S], data: Any, errors: list[ErrorDetails]) -> S | None:
    rest = copy.deepcopy(data)
    for _ in range(5):  # removing one value may uncover an error in another
        for path, missing in [(_path_of(rest, each), each["type"] == "missing") for each in errors]:
            _remove(rest, path, missing)
        try:
            return cls.model_validate(rest)
        except ValidationError as error:
            errors = error.errors(include_url=False)
    return None


def _remove(data: Any, path: _Path, missing: bool) -> None:
    """Removes the value at `path`, or the list that it is an item of: the other items would get other paths. What is
    missing is required, and becomes a text."""
    *parents, last = path
    for key in parents:
        if isinstance(data, dict):
            data[key] = {} if data.get(key) is None else data[key]  # a section that is missing or empty
        elif not isinstance(data, list) or key >= len(data):  # type: ignore[operator]
            return
        data = data[key]
    if isinstance(data, list):
        data.clear()
    elif isinstance(data, dict) and missing:
        data[last] = "?"
    elif isinstance(data, dict):
        data.pop(last, None)


def _issue(cls: type[Section], data: Any, error: ErrorDetails) -> ConfigIssue:
    kind, context, location = error["type"], error.get("ctx", {}), error["loc"]
    path = _path_of(data, error)
    place = ".".join(map(str, path))
    if kind == "config_issue":
        return ConfigIssue(join(place, context["key"]) if context["key"] else place, context["what"], context["remedy"])
    if kind in ("extra_forbidden", "invalid_key"):
        known = list(annotation_at(cls, location[:-1]).model_fields)
        return unknown_key(".".join(map(str, path[:-1])), path[-1], known, all_paths(cls))
    if location and location[-1] == "[key]":
        return unexpected(place, path[-1], "a key that is text")
    words = describe(annotation_at(cls, location))
    if kind == "missing":
        return ConfigIssue(place, "missing", f"expected {words}")
    if kind.startswith("union_tag"):
        sections = map(_as_section, _options(annotation_at(cls, location)))
        kinds = ", ".join(section.model_fields["kind"].default for section in sections)
        given = _value_at(data, path[:-1])
        return unexpected(place, given.get("kind") if isinstance(given, Mapping) else given, f"one of {kinds}")
    return unexpected(place, _value_at(data, path), words, context.get("remedy", ""))


def _path_of(data: Any, error: ErrorDetails) -> _Path:
    """The keys of `data` that lead to the error. Pydantic's location also names members of unions, and it refers to the
    normal form of a value."""
    if error["type"] == "missing":
        return error["loc"]
    path: list[str | int] = []
    for key in error["loc"]:
        if (isinstance(data, Mapping) and key in data) or (isinstance(data, list) and isinstance(key, int)):
            data = data[key]  # type: ignore[index]
            path.append(key)
    return (*path, "kind") if error["type"].startswith("union_tag") else tuple(path)


def _value_at(data: Any, path: _Path) -> Any:
    for key in path:
        data = data[key]
    return data


def annotation_at(cls: type[Section], location: _Path) -> Any:
    """The type of the value at a location of pydantic, with its metadata."""
    found: Any = cls
    for key in location:
        options = [_as_section(option) for option in _options(found)]
        for option in options:
            if is_section(option) and key in option.model_fields:
                found = type_of(option.model_fields[key])
            elif is_section(option) and option.model_fields.get("kind", FieldInfo()).default == key:
                found = option
            elif get_origin(option) is tuple and isinstance(key, int):
                found = get_args(option)[0]
            elif get_origin(option) is dict and len(options) == 1:
                found = get_args(option)[1]
            else:
                continue
            break
    alone = _as_section(_options(found)[0])
    return alone if is_section(alone) and len(_options(found)) == 1 else found


def _as_section(annotation: Any) -> Any:
    return section_of(annotation) if isinstance(annotation, type) and is_dataclass(annotation) else annotation


def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, and the annotation itself where it is not one."""
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return get_args(bare) if get_origin(bare) in (Union, UnionType) else (bare,)


def type_of(info: FieldInfo) -> Any:
    return Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


def describe(annotation: Any) -> str:
    """What a value of this type looks like in a recipe."""
    if get_origin(annotation) is Annotated:
        bare, *metadata = get_args(annotation)
        words = next((str(each) for each in metadata if isinstance(each, Words)), None)
        return words or " and ".join([describe(bare), *_bounds(metadata)]).replace(" and ", " ", 1)
    annotation = _as_section(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if is_section(annotation):
        return f"a mapping with {', '.join(annotation.model_fields)}"
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(str(each) for each in arguments)
    if origin in (Union, UnionType):
        return " or ".join(describe(each) for each in arguments)
    if origin is tuple:
        return f"a list, each item {describe(arguments[0])}"
    if origin is dict:
        return "a mapping" if arguments[1] is Any else f"a mapping of names, each to {describe(arguments[1])}"
    return _NAMES.get(annotation, "a value")


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for each in metadata:
        inner = each.metadata if isinstance(each, FieldInfo) else [each]
        for bound in inner:
            yield from (f"{sign} {getattr(bound, name)}" for name, sign in _BOUNDS.items() if hasattr(bound, name))


@cache
def all_paths(cls: type[Section], path: str = "") -> tuple[str, ...]:
    """The dotted path of every field, except inside lists."""
    found: list[str] = []
    for name, info in cls.model_fields.items():
        found.append(join(path, name))
        annotation = _as_section(info.annotation)
        if is_section(annotation):
            found.extend(all_paths(annotation, found[-1]))
    return tuple(found)
