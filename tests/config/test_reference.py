"""recipes/README.md and recipes/schema.json: up to date, complete, and named by every recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dart_train.config.reference import json_schema, write_reference
from dart_train.config.schema import Recipe
from dart_train.config.validation import all_paths
from dart_train.reduction import REDUCERS

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", ["README.md", "schema.json"])
def test_reference_is_up_to_date(tmp_path: Path, name: str) -> None:
    write_reference(tmp_path)
    hint = "run: python -m dart_train.config.reference recipes"
    assert (tmp_path / name).read_text() == (RECIPES / name).read_text(), hint


def test_reference_has_every_key_with_its_meaning() -> None:
    text = (RECIPES / "README.md").read_text()
    sections = {path.rsplit(".", 1)[0] for path in all_paths(Recipe) if "." in path}
    keys = [path for path in all_paths(Recipe) if path not in sections and not path.startswith("reduction")]
    assert len(keys) > 80
    for key in keys:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{key}` |")]
        assert all(cell.strip() for cell in row.strip("|").split(" | "))
    assert all(f"`{name}`" in text for name in ("image_pivots", "windows", "alpha"))


def test_schema_accepts_the_short_forms() -> None:
    schema = json_schema()
    forms = schema["$defs"]["ReductionConfig"]["anyOf"]
    methods = forms[1]["properties"]["method"]["anyOf"][0]["enum"]
    assert forms[0] == {"enum": ["none"]} and methods == list(REDUCERS)
    assert {"keep", "layer", "schedule", "image_pivots", "windows"} <= forms[1]["properties"].keys()
    tags = schema["$defs"]["Log"]["properties"]["tags"]["anyOf"]
    assert tags == [{"items": {"type": "string"}, "type": "array"}, {"type": "string"}]
    assert schema["$defs"]["Train"]["additionalProperties"] is False
    assert schema["$defs"]["Train"]["properties"]["save_steps"]["minimum"] == 1


def test_every_recipe_names_the_schema() -> None:
    others = ("tiny_base.yaml", "real_base.yaml")  # of other commands
    files = [file for file in RECIPES.glob("*.yaml") if file.name not in others]
    assert len(files) > 5
    for file in files:
        assert file.read_text().startswith("# yaml-language-server: $schema=schema.json\n"), file.name
    assert json.loads((RECIPES / "schema.json").read_text())["required"] == ["model"]
