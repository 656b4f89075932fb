"""The words for types, and the paths that a recipe can have: for messages."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import join

_SCALARS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
    Any: "a value",
}


def describe(kind: Any) -> str:
    """What a value of `kind` looks like in a recipe."""
    if is_dataclass(kind):
        return f"a mapping with {', '.join(f.name for f in fields(kind))}"
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return str(args[1].words)
    if origin is Literal:
        return "one of " + ", ".join(str(arg) for arg in args)
    if origin in (Union, UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin in (tuple, list):
        return f"a list, each item {describe(args[0])}"
    return f"a mapping of names, each to {describe(args[1])}" if origin is dict else _SCALARS[kind]


@cache
def places(root: type, path: str = "") -> tuple[str, ...]:
    """The dotted path of every field below the dataclass `root`, except inside lists."""
    found: list[str] = []
    for name, kind in get_type_hints(root).items():
        found.append(join(path, name))
        if is_dataclass(kind):
            found.extend(places(kind, found[-1]))  # type: ignore[arg-type]
    return tuple(found)
