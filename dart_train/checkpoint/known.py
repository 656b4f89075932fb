"""What is known of a model: the recipe and the base it comes from, and what it was measured to be worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..recipe import RecipeError
from ..recipe.text import parse
from .budgets import Budgets
from .place import ADAPTER, Place

NAME = "provenance.json"
FORMAT = 1


@dataclass(frozen=True)
class Provenance:
    """`budgets` None: nothing is known of a training. `recipe`: with every default written out."""

    source: str
    base_model: str | None = None
    base_revision: str | None = None
    step: int | None = None
    recipe: Mapping[str, Any] | None = None
    budgets: Budgets | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # trained with
    data: tuple[Mapping[str, Any], ...] = ()  # a fingerprint of each source
    results: Mapping[str, Any] = field(default_factory=dict)  # what was measured: validation, compare
    exported_with: Mapping[str, str] = field(default_factory=dict)  # versions

    def to_dict(self) -> dict[str, Any]:
        budgets = None if self.budgets is None else self.budgets.to_dict()
        return {"format": FORMAT, **asdict(self), "budgets": budgets}

    @property
    def trained_dtype(self) -> str | None:
        """What training computed in; None where that is not known."""
        if self.recipe is None:
            return None
        asked = self.recipe.get("model", {}).get("dtype", "auto")
        names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
        return names.get(self.recipe.get("train", {}).get("precision")) if asked == "auto" else str(asked)


def write_provenance(folder: Path, provenance: Provenance) -> None:
    text = json.dumps(provenance.to_dict(), indent=2, ensure_ascii=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def known_of(place: Place) -> Provenance:
    """Of an export what is written in it; of a checkpoint what its recipe says; of a plain model nothing."""
    written = place.folder / NAME
    if written.is_file():
        return _read(written, place.source)
    recipe = _recipe_of(place.folder)
    base, revision = _base_of(place, recipe)
    budgets = None if recipe is None else Budgets.of(recipe.get("reduction"))
    versions = _json(place.folder / "versions.json")
    return Provenance(place.source, base, revision, place.step, recipe, budgets, versions)


def _read(file: Path, source: str) -> Provenance:
    plain = _json(file)
    if plain.pop("format", None) != FORMAT:
        raise ValueError(f"{file}: not of format {FORMAT}, which is all that this version reads; update dart_train")
    budgets = plain.pop("budgets", None)
    known = {name: plain[name] for name in Provenance.__dataclass_fields__ if name in plain}
    read = None if budgets is None else Budgets.read(budgets)
    return Provenance(**{**known, "source": source, "budgets": read, "data": tuple(known.get("data", ()))})


def _recipe_of(folder: Path) -> Mapping[str, Any] | None:
    """Read as it stands: a recipe of another version tells as much as it can."""
    try:
        recipe = parse((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, RecipeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / 'recipe.yaml'} cannot be read: {error}") from error
    return recipe if isinstance(recipe, dict) else None


def _base_of(place: Place, recipe: Mapping[str, Any] | None) -> tuple[str | None, str | None]:
    model = (recipe or {}).get("model") or {}
    if place.adapter:
        adapter = _json(place.folder / ADAPTER)
        named = adapter.get("base_model_name_or_path") or model.get("path")
        return named, adapter.get("revision") or model.get("revision")
    return model.get("path"), model.get("revision")


def _json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return read if isinstance(read, dict) else {}
