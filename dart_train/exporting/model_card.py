"""The model card of an export: what it is, how to load it, what it was trained at and what it was measured to be."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..checkpoints import ResolvedModel
from ..checkpoints.provenance import Provenance
from ..common.environment import versions
from ..common.io import read_jsonl
from ..common.tables import markdown_table

# What an export tells about itself: the data it was trained on, the versions, and what was measured.

_DATA = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".tar")
_BLOCK = 1 << 20


def all_known(found: ResolvedModel) -> Provenance:
    known = found.provenance
    if found.location.run is None:
        return replace(known, exported_with=versions())
    return replace(
        known,
        data=tuple(_fingerprints(known.recipe or {}, _when(found.location.folder))),
        results=_results(found.location.run, found.location.step, known.recipe or {}),
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
    judged = [
        line
        for line in read_jsonl(run / "metrics.jsonl", tolerant=True)
        if "eval_loss" in line and line.get("step") == step
    ]
    if judged:
        found["validation"] = {name: value for name, value in judged[-1].items() if name.startswith(("eval_", "step"))}
    table = Path((recipe.get("compare") or {}).get("output_dir") or run / "compare") / "table.csv"
    for file in (table, run / "compare" / "table.csv"):
        if file.is_file() and "compare" not in found:
            with file.open(encoding="utf-8", newline="") as stream:
                found["compare"] = list(csv.DictReader(stream))
    return found


def write_card(folder: Path, known: Provenance, found: ResolvedModel, name: str, adapter_only: bool) -> None:
    parts = [
        _front(known, adapter_only),
        f"# {name}",
        _what(known, found, adapter_only),
        _use(known, name, adapter_only),
        _training(known, found),
        _data(known.data),
        _measured(known.results),
        _versions(known),
    ]
    (folder / "README.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _front(known: Provenance, adapter_only: bool) -> str:
    head: dict[str, Any] = {"pipeline_tag": "image-text-to-text", "tags": ["dart-train", "visual-token-reduction"]}
    head["library_name"] = "peft" if adapter_only else "transformers"
    if known.base_model and not Path(known.base_model).is_absolute():
        head["base_model"] = known.base_model
    return "---\n" + yaml.safe_dump(head, sort_keys=True) + "---"


def _what(known: Provenance, found: ResolvedModel, adapter_only: bool) -> str:
    base = f"`{known.base_model}`" if known.base_model else "its base model"
    if adapter_only:
        kind = f"A PEFT adapter (with all else that was trained beside it) for {base}"
    else:
        kind = f"{base}, fine-tuned" + (
            " with an adapter, which is merged into the weights" if found.location.is_adapter else ""
        )
    at = "" if known.budgets is None else f", trained at {known.budgets}"
    return f"{kind}{at}. Written by `dart_train export`."


def _use(known: Provenance, name: str, adapter_only: bool) -> str:
    imports = ["from transformers import AutoModelForImageTextToText, AutoProcessor"]
    model = [f'model = AutoModelForImageTextToText.from_pretrained("{known.base_model if adapter_only else name}")']
    if adapter_only:
        imports.insert(0, "from peft import PeftModel")
        model.append(f'model = PeftModel.from_pretrained(model, "{name}")')
    full = "\n".join([*imports, "", *model, f'processor = AutoProcessor.from_pretrained("{name}")'])
    reduced = f'import dart_train\n\nloaded = dart_train.load("{name}")  # .model, .processor, .attached'
    return (
        f"## Use\n\nWith full tokens, without dart_train:\n\n```python\n{full}\n```\n\n"
        f"With the reduction of `reducer.json` attached as it was trained:\n\n```python\n{reduced}\n```"
    )


def _training(known: Provenance, found: ResolvedModel) -> str:
    rows = [f"- checkpoint of step {known.step}"] if known.step is not None else []
    if known.budgets is not None:
        rows.append(f"- budgets trained at: {known.budgets}")
    rows += [f"- reduction served: `{json.dumps(stage.to_dict())}`" for stage in found.trained or ()]
    if known.recipe is not None:
        parts = known.recipe.get("parts") or {}
        modes = [f"{name} {parts[name]['mode']}" for name in ("vision", "projector", "language") if name in parts]
        rows.append(f"- what trained: {', '.join(modes)}; the whole recipe is in `recipe.yaml` and `provenance.json`")
    return "## Training\n\n" + "\n".join(rows) if rows else ""


def _data(sources: Sequence[Mapping[str, Any]]) -> str:
    rows = [[str(s.get("use")), f"`{s.get('path')}`", f"`{s.get('sha256')}`", _state(s)] for s in sources]
    return "## Data\n\n" + markdown_table(["use", "path", "sha256", "of"], rows) if rows else ""


def _state(source: Mapping[str, Any]) -> str:
    return str(source.get("of")) + (", changed since training" if source.get("changed_since_training") else "")


def _measured(results: Mapping[str, Any]) -> str:
    if not results:
        return "## Measured\n\nNothing was measured in the run: no validation, no comparison."
    told = []
    if "validation" in results:
        told.append(_table([{"metric": k, "value": v} for k, v in results["validation"].items()], "Validation"))
    if results.get("compare"):
        told.append(_table(results["compare"], "Comparison"))
    return "## Measured\n\n" + "\n\n".join(told)


def _table(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    names = list(rows[0])
    return f"{title}:\n\n" + markdown_table(names, [[str(row.get(name, "")) for name in names] for row in rows])


def _versions(known: Provenance) -> str:
    told = {"trained with": known.versions, "exported with": known.exported_with}
    rows = [f"- {what}: " + ", ".join(f"{k} {v}" for k, v in each.items()) for what, each in told.items() if each]
    return "## Versions\n\n" + "\n".join(rows) if rows else ""
