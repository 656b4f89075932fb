"""YAML in and out: the plain scalars of YAML 1.2, and no key twice.

YAML 1.1, which PyYAML speaks, reads `2e-5` as text, `off` as false, `12:30` as 750 and a date as an object.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from .errors import Problem, RecipeError

_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "merge": (r"<<", "<"),
}


class _Loader(yaml.SafeLoader):
    """SafeLoader that notes keys given twice instead of letting the last one win."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[Problem] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                self.twice.append(Problem(name, f"given twice, in lines {seen[name]} and {line}", "keep one"))
            seen[name] = line
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read back as text; never writes anchors."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in _SCALARS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_BREAKS = re.compile("[\x85\u2028\u2029]")
_UNREADABLE = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    AttributeError,
)  # the last three: `!!bool so`, `!!int x`


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Line breaks that only Unicode knows are lost unless they are escaped, which double quotes do."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, '"' if _BREAKS.search(text) else None)


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)  # 010 is ten, not eight
_Dumper.add_representer(str, _text)


def parse(text: str) -> Any:
    """The plain data of one YAML document; aliased parts become copies, so that each can be overridden."""
    try:
        loader = _Loader(text)
        data = _unshared(loader.get_single_data())
    except RecursionError as error:
        raise RecipeError([Problem("", "an anchor refers to itself, or the nesting is too deep")]) from error
    except _UNREADABLE as error:
        raise RecipeError([Problem("", f"not readable as YAML: {' '.join(str(error).split())}")]) from error
    if loader.twice:
        raise RecipeError(loader.twice)
    return data


def dump(data: Any) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _unshared(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _unshared(value) for key, value in data.items()}
    return [_unshared(value) for value in data] if isinstance(data, list) else data
