"""The provenance and the model card of an export: what it is, how to load it, which data and budgets it was trained
with, and how it was measured."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..checkpoints import COMPLETE_MARKER, Provenance, ResolvedModel
from ..common.environment import versions
from ..common.io import read_jsonl
from ..common.tables import markdown_table
from .calibration_card import calibration_section

_DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".tar")
_BLOCK = 1 << 20


def collect_provenance(found: ResolvedModel) -> Provenance:
    """What the checkpoint knows; for a run also its data and results."""
    provenance, run = found.provenance, found.location.run
    if run is None:
        return replace(provenance, exported_with=versions())
    recipe = provenance.recipe or {}
    marker = found.location.folder / COMPLETE_MARKER
    trained_at = (marker if marker.is_file() else found.location.folder).stat().st_mtime
    return replace(
        provenance,
        data=tuple(_fingerprint_sources(recipe, trained_at)),
        results=_collect_results(run, found.location.step, recipe),
        exported_with=versions(),
    )


def _fingerprint_sources(recipe: Mapping[str, Any], trained_at: float) -> Iterator[dict[str, Any]]:
    data = recipe.get("data") or {}
    for use in ("train", "validation"):
        for source in data.get(use) or ():
            named = {key: source[key] for key in ("path", "name", "split", "limit", "weight") if key in source}
            yield {"use": use, **named, **fingerprint_data(Path(str(source["path"])), trained_at)}


def fingerprint_data(path: Path, trained_at: float) -> dict[str, Any]:
    """Hashes the content of a file, or the names and sizes of a folder's data files (not of images next to them)."""
    if path.is_file():
        digest, of, newest = _sha256(path), "content", path.stat().st_mtime
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _DATA_SUFFIXES and file.is_file())
        listed = "\n".join(f"{file.relative_to(path)} {file.stat().st_size}" for file in files)
        digest, of = hashlib.sha256(listed.encode()).hexdigest(), "names and sizes of its data files"
        newest = max((file.stat().st_mtime for file in files), default=0.0)
    else:
        return {"sha256": None, "of": "not available when the model was exported"}
    return {"sha256": digest, "of": of, "changed_since_training": newest > trained_at}


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _collect_results(run: Path, step: int | None, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The validation at this step, and the table of a comparison."""
    results: dict[str, Any] = {}
    lines = read_jsonl(run / "metrics.jsonl", tolerant=True)
    validations = [line for line in lines if "eval_loss" in line and line.get("step") == step]
    if validations:
        last = validations[-1]
        results["validation"] = {name: value for name, value in last.items() if name.startswith(("eval_", "step"))}
    table = Path((recipe.get("compare") or {}).get("output_dir") or run / "compare") / "table.csv"
    for file in (table, run / "compare" / "table.csv"):
        if file.is_file() and "compare" not in results:
            with file.open(encoding="utf-8", newline="") as stream:
                results["compare"] = list(csv.DictReader(stream))
    return results


def write_card(folder: Path, provenance: Provenance, found: ResolvedModel, name: str, adapter_only: bool) -> None:
    sections = [
        _front_matter(provenance, adapter_only),
        f"# {name}",
        _summary(provenance, found, adapter_only),
        _usage(provenance, name, adapter_only),
        _training(provenance, found),
        _data(provenance.data),
        _results(provenance.results),
        calibration_section(folder),
        _versions(provenance),
    ]
    (folder / "README.md").write_text("\n\n".join(each for each in sections if each) + "\n", encoding="utf-8")


def _front_matter(provenance: Provenance, adapter_only: bool) -> str:
    head: dict[str, Any] = {"pipeline_tag": "image-text-to-text", "tags": ["dart-train", "visual-token-reduction"]}
    head["library_name"] = "peft" if adapter_only else "transformers"
    if provenance.base_model and not Path(provenance.base_model).is_absolute():
        head["base_model"] = provenance.base_model
    return "---\n" + yaml.safe_dump(head, sort_keys=True) + "---"


def _summary(provenance: Provenance, found: ResolvedModel, adapter_only: bool) -> str:
    base = f"`{provenance.base_model}`" if provenance.base_model else "its base model"
    if adapter_only:
        kind = f"A PEFT adapter (with all other trained parameters) for {base}"
    elif found.location.is_adapter:
        kind = f"{base}, fine-tuned with an adapter, which is merged into the weights"
    else:
        kind = f"{base}, fine-tuned"
    budgets = "" if provenance.budgets is None else f", trained at {provenance.budgets}"
    return f"{kind}{budgets}. Written by `dart_train export`."


def _usage(provenance: Provenance, name: str, adapter_only: bool) -> str:
    imports = ["from transformers import AutoModelForImageTextToText, AutoProcessor"]
    source = provenance.base_model if adapter_only else name
    model = [f'model = AutoModelForImageTextToText.from_pretrained("{source}")']
    if adapter_only:
        imports.insert(0, "from peft import PeftModel")
        model.append(f'model = PeftModel.from_pretrained(model, "{name}")')
    full = "\n".join([*imports, "", *model, f'processor = AutoProcessor.from_pretrained("{name}")'])
    reduced = f'import dart_train\n\nloaded = dart_train.load("{name}")  # .model, .processor, .attached'
    return (
        f"## Use\n\nWith full tokens, without dart_train:\n\n```python\n{full}\n```\n\n"
        f"With the reduction of `reducer.json` attached as it was trained:\n\n```python\n{reduced}\n```"
    )


def _training(provenance: Provenance, found: ResolvedModel) -> str:
    rows = [f"- checkpoint of step {provenance.step}"] if provenance.step is not None else []
    if provenance.budgets is not None:
        rows.append(f"- budgets trained at: {provenance.budgets}")
    rows += [f"- reduction served: `{json.dumps(stage.to_dict())}`" for stage in found.trained or ()]
    if provenance.recipe is not None:
        parts = provenance.recipe.get("parts") or {}
        modes = [f"{name} {parts[name]['mode']}" for name in ("vision", "projector", "language") if name in parts]
        rows.append(f"- parts trained: {', '.join(modes)}; the full recipe is in `recipe.yaml` and `provenance.json`")
    return "## Training\n\n" + "\n".join(rows) if rows else ""


def _data(sources: Sequence[Mapping[str, Any]]) -> str:
    if not sources:
        return ""
    rows = []
    for source in sources:
        changed = ", changed since training" if source.get("changed_since_training") else ""
        rows.append([str(source.get("use")), f"`{source.get('path')}`", f"`{source.get('sha256')}`",
                     f"{source.get('of')}{changed}"])  # fmt: skip
    return "## Data\n\n" + markdown_table(["use", "path", "sha256", "of"], rows)


def _results(results: Mapping[str, Any]) -> str:
    tables = []
    if "validation" in results:
        rows = [[name, str(value)] for name, value in results["validation"].items()]
        tables.append("Validation:\n\n" + markdown_table(["metric", "value"], rows))
    if results.get("compare"):
        names = list(results["compare"][0])
        rows = [[str(row.get(name, "")) for name in names] for row in results["compare"]]
        tables.append("Comparison:\n\n" + markdown_table(names, rows))
    return "## Results\n\n" + ("\n\n".join(tables) or "None: the run had no validation and no comparison.")


def _versions(provenance: Provenance) -> str:
    recorded = {"trained with": provenance.versions, "exported with": provenance.exported_with}
    rows = [f"- {use}: " + ", ".join(f"{k} {v}" for k, v in each.items()) for use, each in recorded.items() if each]
    return "## Versions\n\n" + "\n".join(rows) if rows else ""
