"""What is needed to know a run later: the recipe with every default written out, the versions it ran with, and which
base model it began from."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

from ..recipe import Recipe
from .base_model import base_of

PACKAGES = ("dart-train", "torch", "transformers", "peft", "accelerate", "deepspeed", "datasets", "safetensors")
RECIPE, VERSIONS, BASE = "recipe.yaml", "versions.json", "base.json"


def write_record(folder: Path, recipe: Recipe) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
    (folder / VERSIONS).write_text(json.dumps(versions(), indent=2) + "\n", encoding="utf-8")
    (folder / BASE).write_text(json.dumps(base_of(recipe), indent=2) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
