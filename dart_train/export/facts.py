"""What an export tells about itself: the data it was trained on, the versions, and what was measured."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint import Found
from ..checkpoint.known import Provenance
from ..train.record import versions

_DATA = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".tar")
_BLOCK = 1 << 20


def all_known(found: Found) -> Provenance:
    known = found.provenance
    if found.place.run is None:
        return replace(known, exported_with=versions())
    return replace(
        known,
        data=tuple(_fingerprints(known.recipe or {}, _when(found.place.folder))),
        results=_results(found.place.run, found.place.step, known.recipe or {}),
        exported_with=versions(),
    )


def _when(checkpoint: Path) -> float:
    mark = checkpoint / "complete.json"
    return (mark if mark.is_file() else checkpoint).stat().st_mtime


def _fingerprints(recipe: Mapping[str, Any], trained: float) -> Iterator[dict[str, Any]]:
    data = recipe.get("data") or {}
    for use in ("train", "validation"):
        for source in data.get(use) or ():
            named = {key: source[key] for key in ("path", "name", "split", "limit", "weight") if key in source}
            yield {"use": use, **named, **fingerprint(Path(str(source["path"])), trained)}


def fingerprint(path: Path, trained: float) -> dict[str, Any]:
    """Of a file its content, of a folder the names and sizes of its data files; pictures beside them are not seen."""
    if path.is_file():
        digest, of, newest = _sha256(path), "content", path.stat().st_mtime
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _DATA and file.is_file())
        listed = "\n".join(f"{file.relative_to(path)} {file.stat().st_size}" for file in files)
        digest, of = hashlib.sha256(listed.encode()).hexdigest(), "names and sizes of its data files"
        newest = max((file.stat().st_mtime for file in files), default=0.0)
    else:
        return {"sha256": None, "of": "not at hand when it was exported"}
    return {"sha256": digest, "of": of, "changed_since_training": newest > trained}


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _results(run: Path, step: int | None, recipe: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    judged = [line for line in _lines(run / "metrics.jsonl") if "eval_loss" in line and line.get("step") == step]
    if judged:
        found["validation"] = {name: value for name, value in judged[-1].items() if name.startswith(("eval_", "step"))}
    table = Path((recipe.get("compare") or {}).get("output_dir") or run / "compare") / "table.csv"
    for file in (table, run / "compare" / "table.csv"):
        if file.is_file() and "compare" not in found:
            with file.open(encoding="utf-8", newline="") as stream:
                found["compare"] = list(csv.DictReader(stream))
    return found


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # a line that was cut when the machine stopped
            continue
