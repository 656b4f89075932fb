"""The reference of recipes, generated from the schema: `recipes/README.md`, and `recipes/schema.json` for editors.

    python -m dart_train.config.reference recipes

Run it after a change of a key, a default or a description; a test compares the files with the schema.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from ..common.tables import markdown_table
from ..reduction import REDUCERS, Reducer
from ..reduction.schedule import Elastic, Fixed, Progressive
from .errors import join
from .fields import KEEP_WORDS, Section, is_section, section_of
from .schema import Model, Recipe, ReductionConfig, plain
from .validation import annotation_at, describe, type_of

INTRODUCTION = """\
# Recipes

A recipe is a YAML file that describes a run. Every key that is left out has its default; only `model.path` is required.
Any key can be changed on the command line, with `key=value` after the recipe:

    deepspeed launch/train.py recipes/llava_dart.yaml train.learning_rate=1e-4 data.train.0.limit=100
    python -m dart_train train recipes/llava_dart.yaml --dry-run     # prints the recipe with all defaults

Values are YAML 1.2. Reading is strict: an unknown key, a wrong type or a value out of range is an error, and all errors
are reported together, each with its key, the value and what was expected. Editors that know the YAML language server
complete and check keys by `schema.json`, which the first line of each recipe names.

`tiny_base.yaml` belongs to `python -m dart_train base` and has keys of its own (data/tiny_base/train/recipe.py), and so
does `real_base.yaml` to `python -m data.real_base` (data/real_base/train/recipe.py).

This file and `schema.json` are generated: `python -m dart_train.config.reference recipes`.
"""
REDUCTION_FORMS = """\
Three forms:

    reduction: none
    reduction: {method: dart, keep: 64, layer: 2, schedule: {kind: elastic}}
    reduction: [{method: dart, layer: 2, keep: 288}, {method: dart, layer: 8, keep: 64}]     # stages

`tower` adds a stage in the vision tower, before all others (Qwen2-VL, Qwen2.5-VL, Qwen3-VL, LLaVA-1.5, LLaVA-NeXT,
LLaVA-OneVision, InternVL, Gemma 3). Dropped units do not run through the rest of the tower and take the features of the
unit that stands for them, so that what comes later sees as many tokens as ever:

    reduction: {method: dart, keep: 64, tower: {tolerance: 0.0}}        # units whose pixels repeat those of another one
    reduction: {method: dart, keep: 64, tower: {layer: 4, keep: 0.5}}   # half of the units, chosen before block 4
"""


def write_reference(folder: Path) -> None:
    (folder / "README.md").write_text(markdown(), encoding="utf-8")
    (folder / "schema.json").write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")


def markdown() -> str:
    default = Recipe(model=Model(path="-"))
    return "\n".join([INTRODUCTION, *_sections(Recipe, default)]).rstrip() + "\n"


def _sections(cls: type[Section], default: Any, path: str = "") -> Iterator[str]:
    """One table for each section below `cls`, in the order of the recipe. default: an instance of the section."""
    described: dict[Any, str] = {}
    for name, info in cls.model_fields.items():
        key, section, item = join(path, name), annotation_at(cls, (name,)), annotation_at(cls, (name, 0))
        if section is ReductionConfig:
            yield from _reduction(key)
        elif is_section(section):
            yield f"## {key}\n\n{_text(section)}\n"
            yield _table(section, key, getattr(default, name))
            yield from _sections(section, getattr(default, name), key)
        elif is_section(item):
            described.setdefault(item, key)
            if described[item] == key:
                yield f"## {key}\n\nA list of mappings: {info.description}. Keys of the first item:\n"
                yield _table(item, f"{key}.0")
            else:
                yield f"## {key}\n\nA list of mappings: {info.description}. The keys are those of {described[item]}.\n"


def _table(cls: type[Section], path: str, default: Any = None) -> str:
    """default: an instance of the section, whose values may differ from the defaults of the class."""
    rows = []
    for name, info in cls.model_fields.items():
        if not is_section(annotation_at(cls, (name,))):
            listed = is_section(annotation_at(cls, (name, 0)))
            value = "a list of mappings, see below" if listed else describe(type_of(info))
            written = info.get_default(call_default_factory=True) if default is None else getattr(default, name)
            shown = "required" if info.is_required() else _code(written)
            rows.append((f"`{join(path, name)}`", value, shown, info.description or ""))
    return markdown_table(("key", "value", "default", "meaning"), rows) + "\n" if rows else ""


def _reduction(path: str) -> Iterator[str]:
    yield f"## {path}\n\n{_text(ReductionConfig)}\n\n{REDUCTION_FORMS}"
    yield f"The default is `{json.dumps(plain(ReductionConfig().model_dump()))}`.\n"
    yield "The options of every method:\n"
    yield _options_table(Reducer, of=Reducer)
    yield "And more options of some methods:\n"
    for name, cls in REDUCERS.items():
        if len(fields(cls)) > len(fields(Reducer)):
            yield f"`{name}`\n"
            yield _options_table(cls, of=Reducer)
    yield f"### {path}.schedule\n"
    for kind in (Fixed, Progressive, Elastic):
        yield f"`{kind.kind}`: {_text(kind)}\n"
        yield _table(section_of(kind), f"{path}.schedule")


def _options_table(cls: type[Reducer], of: type[Reducer]) -> str:
    """The fields of a reducer, without those of `of` unless it is that class. Meanings are in its docstring."""
    hints, inherited = get_type_hints(cls), {each.name for each in fields(of)} if cls is not of else set()
    rows = []
    for each in fields(cls):
        if each.name not in inherited:
            value = KEEP_WORDS if each.name == "keep" else describe(hints[each.name])
            rows.append((f"`{each.name}`", value, _code(each.default), _meaning(cls, each.name)))
    return markdown_table(("option", "value", "default", "meaning"), rows) + "\n"


def _meaning(cls: type, name: str) -> str:
    """From the docstring: `name: meaning.`, or `name, other: meaning.`"""
    following = r"(?=\.\s+(?:\w+, )*\w+: |\.?\s*\n\s*\n|\.?\s*\Z)"
    found = re.search(rf"(?:^|[\s,]){name}(?:, \w+)*: (.+?){following}", cls.__doc__ or "", re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _code(value: Any) -> str:
    """As in YAML."""
    value = plain(value)
    return f"`{value if value and isinstance(value, str) else json.dumps(value)}`"


def _text(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split())


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe as it may be written: with the short forms that validation reads."""
    schema: dict[str, Any] = _accept_single_values(Recipe.model_json_schema())
    definitions = schema["$defs"]
    normal = definitions["ReductionConfig"]
    stage = _stage_schema()
    alone = {**stage, "properties": {**stage["properties"], "schedule": normal["properties"]["schedule"]}}
    normal["properties"]["stages"] = {"type": "array", "items": stage, "minItems": 1}
    definitions["ReductionConfig"] = {
        "description": normal.pop("description"),
        "anyOf": [{"enum": ["none"]}, alone, {"type": "array", "items": stage, "minItems": 1}, normal],
    }
    for name, section in schema["properties"].items():
        if name not in ("model", "reduction"):
            schema["properties"][name] = {"anyOf": [section, {"type": "null"}]}  # a heading with nothing under it
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _accept_single_values(schema: Any) -> Any:
    """One value may stand for a list of one, unless the items are mappings."""
    if isinstance(schema, list):
        return [_accept_single_values(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    walked = {key: _accept_single_values(each) for key, each in schema.items()}
    items = walked.get("items")
    if walked.get("type") != "array" or not isinstance(items, dict) or "$ref" in items or items.get("type") == "object":
        return walked
    outside = {key: walked.pop(key) for key in ("title", "description", "default") if key in walked}
    return {**outside, "anyOf": [walked, items]}


def _stage_schema() -> dict[str, Any]:
    """A method with its options. Classes of other packages, `package.module:Class`, have options of their own."""
    properties: dict[str, Any] = {"method": {"anyOf": [{"enum": list(REDUCERS)}, {"type": "string", "pattern": ":"}]}}
    for cls in REDUCERS.values():
        hints = get_type_hints(cls)
        properties |= {each.name: TypeAdapter(hints[each.name]).json_schema() for each in fields(cls)}
    return {"type": "object", "properties": properties, "required": ["method"]}


if __name__ == "__main__":
    write_reference(Path(sys.argv[1] if len(sys.argv) > 1 else "recipes"))
