"""What a run and each of its checkpoints record: recipe.yaml with every default, versions.json, base.json, which
identifies the base model by its files, because folders are moved, and rows.json, which identifies the order of rows."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from ..common.environment import versions
from ..config import Recipe

RECIPE_FILE, VERSIONS_FILE, BASE_FILE, ROWS_FILE = "recipe.yaml", "versions.json", "base.json", "rows.json"
_BLOCK, _BLOCKS = 65536, 16
_WEIGHTS = (".safetensors", ".bin")


def write_run_record(folder: Path, recipe: Recipe, rows: dict[str, Any]) -> None:
    """rows: `TrainFeed.fingerprint`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")
    (folder / VERSIONS_FILE).write_text(json.dumps(versions(), indent=2) + "\n", encoding="utf-8")
    (folder / ROWS_FILE).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (folder / BASE_FILE).write_text(json.dumps(base_of(recipe), indent=2) + "\n", encoding="utf-8")


def base_of(recipe: Recipe) -> dict[str, str]:
    """What the base model is, wherever it is stored."""
    folder = Path(recipe.model.path)
    if not folder.is_dir():
        return {"model": f"{recipe.model.path}@{recipe.model.revision or 'newest'}"}
    return {"model": fingerprint_model(folder)}


@cache
def fingerprint_model(folder: Path) -> str:
    """Hashes a model's folder: its complete configuration, and the size and some blocks of each weights file."""
    digest = hashlib.sha256()
    config = folder / "config.json"
    digest.update(config.read_bytes() if config.is_file() else b"")
    for file in sorted(each for each in folder.iterdir() if each.suffix in _WEIGHTS):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for start in sorted({size * i // _BLOCKS for i in range(_BLOCKS)} | {max(0, size - _BLOCK)}):
                content.seek(start)
                digest.update(content.read(_BLOCK))
    return digest.hexdigest()[:16]
