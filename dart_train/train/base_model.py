"""Which base model a run began from, told by its files and not by its path: folders are moved."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from ..recipe import Recipe

_BLOCK, _BLOCKS = 65536, 16
_WEIGHTS = (".safetensors", ".bin")


def base_of(recipe: Recipe) -> dict[str, str]:
    """What the base model is, wherever it lies."""
    folder = Path(recipe.model.path)
    if not folder.is_dir():
        return {"model": f"{recipe.model.path}@{recipe.model.revision or 'newest'}"}
    return {"model": fingerprint(folder)}


@cache
def fingerprint(folder: Path) -> str:
    """Of a model's folder: its configuration whole; of weights, sizes and blocks from all over each file."""
    told = hashlib.sha256()
    config = folder / "config.json"
    told.update(config.read_bytes() if config.is_file() else b"")
    for file in sorted(each for each in folder.iterdir() if each.suffix in _WEIGHTS):
        size = file.stat().st_size
        told.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for start in sorted({size * i // _BLOCKS for i in range(_BLOCKS)} | {max(0, size - _BLOCK)}):
                content.seek(start)
                told.update(content.read(_BLOCK))
    return told.hexdigest()[:16]
