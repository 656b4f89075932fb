"""What is known of how a model was trained: provenance.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import RecipeError
from ..config.yaml import parse
from ..reduction.trained_budgets import TrainedBudgets
from .locate import ADAPTER, ModelLocation

PROVENANCE_FILE = "provenance.json"
PROVENANCE_FORMAT = 1  # raise it when the file changes in a way that older readers would misread


@dataclass(frozen=True)
class Provenance:
    """What a model was trained from, with what, and how it was measured. `budgets` None: nothing is known of a
    training. `recipe` has every default written out."""

    source: str
    base_model: str | None = None
    base_revision: str | None = None
    step: int | None = None
    recipe: Mapping[str, Any] | None = None
    budgets: TrainedBudgets | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # of the training
    data: tuple[Mapping[str, Any], ...] = ()  # a fingerprint of each source
    results: Mapping[str, Any] = field(default_factory=dict)  # of validation and comparison
    exported_with: Mapping[str, str] = field(default_factory=dict)  # versions

    def to_dict(self) -> dict[str, Any]:
        budgets = None if self.budgets is None else self.budgets.to_dict()
        return {"format": PROVENANCE_FORMAT, **asdict(self), "budgets": budgets}

    @property
    def trained_dtype(self) -> str | None:
        """The dtype that training computed in; None: not known."""
        if self.recipe is None:
            return None
        dtype = self.recipe.get("model", {}).get("dtype", "auto")
        names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
        return names.get(self.recipe.get("train", {}).get("precision")) if dtype == "auto" else str(dtype)


def write_provenance(folder: Path, provenance: Provenance) -> None:
    text = json.dumps(provenance.to_dict(), indent=2, ensure_ascii=False)
    (folder / PROVENANCE_FILE).write_text(text + "\n", encoding="utf-8")


def read_provenance(location: ModelLocation) -> Provenance:
    """From provenance.json in an export; from the recipe in a checkpoint; a plain model has only its source."""
    folder = location.folder
    if (folder / PROVENANCE_FILE).is_file():
        return _read_exported(folder / PROVENANCE_FILE, location.source)
    recipe = _read_recipe(folder)
    base, revision = _base_of(location, recipe)
    budgets = None if recipe is None else TrainedBudgets.of(recipe.get("reduction"))
    versions = _read_json(folder / "versions.json")
    return Provenance(location.source, base, revision, location.step, recipe, budgets, versions)


def _read_exported(file: Path, source: str) -> Provenance:
    content = _read_json(file)
    given = content.pop("format", None)
    if given != PROVENANCE_FORMAT:
        raise ValueError(f"{file}: format {given!r}, expected {PROVENANCE_FORMAT}; update dart_train to read it")
    budgets = content.pop("budgets", None)
    known = {name: content[name] for name in Provenance.__dataclass_fields__ if name in content}
    read = None if budgets is None else TrainedBudgets.read(budgets)
    return Provenance(**{**known, "source": source, "budgets": read, "data": tuple(known.get("data", ()))})


def _read_recipe(folder: Path) -> Mapping[str, Any] | None:
    """Not checked: what a recipe of another version has in common with this one is used."""
    try:
        recipe = parse((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, RecipeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / 'recipe.yaml'} cannot be read: {error}") from error
    return recipe if isinstance(recipe, dict) else None


def _base_of(location: ModelLocation, recipe: Mapping[str, Any] | None) -> tuple[str | None, str | None]:
    model = (recipe or {}).get("model") or {}
    if location.is_adapter:
        adapter = _read_json(location.folder / ADAPTER)
        base = adapter.get("base_model_name_or_path") or model.get("path")
        return base, adapter.get("revision") or model.get("revision")
    return model.get("path"), model.get("revision")


def _read_json(file: Path) -> dict[str, Any]:
    """Empty where there is no file, or no object in it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


class UntrainedBudget(UserWarning):
    """The model runs at a budget that it was not trained at."""
