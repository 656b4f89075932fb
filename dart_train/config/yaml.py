"""YAML in and out: the plain scalars of YAML 1.2, and no key twice.

PyYAML implements YAML 1.1, which reads `2e-5` as text, `off` as false, `12:30` as 750 and a date as an object.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from .errors import ConfigIssue, RecipeError

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
# The last three are raised by explicit tags with a wrong value: `!!bool so`, `!!int x`.
_UNREADABLE = (yaml.YAMLError, ValueError, LookupError, AttributeError)
_UNICODE_BREAKS = re.compile("[\x85\u2028\u2029]")


class _Loader(yaml.SafeLoader):
    """SafeLoader that records duplicate keys; in PyYAML the last one wins silently."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: list[ConfigIssue] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                self.duplicates.append(ConfigIssue(name, f"given twice, in lines {lines[name]} and {line}", "keep one"))
            lines[name] = line
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as another type; never writes anchors."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _construct_decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Unicode line breaks are lost unless they are escaped, which double quotes do."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, '"' if _UNICODE_BREAKS.search(text) else None)


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_decimal)  # 010 is ten, not eight
_Dumper.add_representer(str, _represent_text)


def parse(text: str) -> Any:
    """The plain data of one YAML document. Aliased parts become copies, so that each can be overridden."""
    try:
        loader = _Loader(text)
        data = _without_aliases(loader.get_single_data())
    except RecursionError as error:
        raise RecipeError([ConfigIssue("", "an anchor refers to itself, or the nesting is too deep")]) from error
    except _UNREADABLE as error:
        raise RecipeError([ConfigIssue("", f"not readable as YAML: {' '.join(str(error).split())}")]) from error
    if loader.duplicates:
        raise RecipeError(loader.duplicates)
    return data


def dump(data: Any) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _without_aliases(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_aliases(value) for key, value in data.items()}
    return [_without_aliases(value) for value in data] if isinstance(data, list) else data
