"""From plain data to frozen dataclasses, strictly: each mistake is noted with its path, nothing is guessed.

Knows scalars, unions, Literal, Annotated ranges, tuples and lists, mappings, nested dataclasses, and unions
of dataclasses that are told apart by their `kind`. A lone value may stand for a list of one. A class that is
written in a form of its own defines `read_plain` and `to_plain`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import Problem, expected, join, unknown
from .words import describe, places

INVALID: Any = object()  # what could not be read; the problem is noted


@dataclass
class Reader:
    """Reads values of a recipe whose root is the dataclass `root`."""

    root: type
    problems: list[Problem] = field(default_factory=list)

    def note(self, problem: Problem) -> Any:
        self.problems.append(problem)
        return INVALID

    def read(self, kind: Any, value: Any, path: str = "") -> Any:
        """`value` as a `kind`, or INVALID."""
        if hasattr(kind, "read_plain"):
            return kind.read_plain(self, value, path)
        if is_dataclass(kind):
            return self._section(kind, value, path)
        origin = get_origin(kind)
        if origin is Annotated:
            return self._ranged(kind, value, path)
        if origin in (Union, UnionType):
            return self._either(kind, value, path)
        if origin in (tuple, list):
            return self._items(kind, value, path)
        if origin is dict:
            return self._mapping(kind, value, path)
        good = _among(get_args(kind), value) if origin is Literal else _fits(kind, value)
        if not good:
            return self.note(expected(path, value, describe(kind)))
        return float(value) if kind is float else value

    def _section(self, cls: Any, value: Any, path: str) -> Any:
        value = {} if value is None else value  # a heading with nothing under it
        if not isinstance(value, Mapping):
            return self.note(expected(path, value, describe(cls)))
        known = [f.name for f in fields(cls)]
        for key in value:
            if key not in known:
                self.note(unknown(path, key, known, places(self.root)))
        kinds = get_type_hints(cls, include_extras=True)
        return cls(**{f.name: self._field(f, kinds[f.name], value, path) for f in fields(cls)})

    def _field(self, f: Field[Any], kind: Any, section: Mapping[str, Any], path: str) -> Any:
        """The field's value; where it cannot be had, a placeholder, so that other mistakes are found too."""
        place = join(path, f.name)
        if f.name in section:
            value = self.read(kind, section[f.name], place)
            if value is not INVALID:
                return value
        elif f.default is MISSING and f.default_factory is MISSING:
            if is_dataclass(kind):
                return self.read(kind, {}, place)  # which notes what is missing in it
            self.note(Problem(place, "missing", f"expected {describe(kind)}"))
        return self._placeholder(f, kind)

    def _placeholder(self, f: Field[Any], kind: Any) -> Any:
        if f.default_factory is not MISSING:
            return f.default_factory()
        if f.default is not MISSING:
            return f.default
        return Reader(self.root).read(kind, {}) if is_dataclass(kind) else None

    def _ranged(self, kind: Any, value: Any, path: str) -> Any:
        base, limits = get_args(kind)
        read = Reader(self.root).read(base, value)
        if read is INVALID or not limits.holds(read):
            return self.note(expected(path, value, limits.words))
        return read

    def _either(self, kind: Any, value: Any, path: str) -> Any:
        options = [option for option in get_args(kind) if option is not NoneType]
        if value is None and NoneType in get_args(kind):
            return None
        if all(is_dataclass(option) for option in options) and isinstance(value, Mapping):
            return self._by_kind(options, value, path)
        for option in options:
            attempt = Reader(self.root)
            read = attempt.read(option, value, path)
            if not attempt.problems:
                return read
        return self.note(expected(path, value, describe(kind)))

    def _by_kind(self, options: list[Any], value: Mapping[str, Any], path: str) -> Any:
        for option in options:
            if value.get("kind") == option.kind:
                return self._section(option, value, path)
        kinds = ", ".join(option.kind for option in options)
        return self.note(expected(join(path, "kind"), value.get("kind"), f"one of {kinds}"))

    def _items(self, kind: Any, value: Any, path: str) -> Any:
        item = get_args(kind)[0]
        if isinstance(value, str | int | float) and not is_dataclass(item):
            value = [value]
        if not isinstance(value, list | tuple):
            return self.note(expected(path, value, describe(kind)))
        read = [self.read(item, each, join(path, i)) for i, each in enumerate(value)]
        return INVALID if any(each is INVALID for each in read) else get_origin(kind)(read)

    def _mapping(self, kind: Any, value: Any, path: str) -> Any:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            return self.note(expected(path, value, describe(kind)))
        read = {key: self.read(get_args(kind)[1], each, join(path, key)) for key, each in value.items()}
        return INVALID if any(each is INVALID for each in read.values()) else read


def _among(options: tuple[Any, ...], value: Any) -> bool:
    return any(type(value) is type(option) and value == option for option in options)


def _fits(kind: Any, value: Any) -> bool:
    if kind is Any:
        return True
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


def plain(value: Any) -> Any:
    """What `Reader.read` reads back: mappings, lists and scalars only."""
    if hasattr(value, "to_plain"):
        return value.to_plain()
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
