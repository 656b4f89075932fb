"""The model card of an export: what it is, how to load it, what it was trained at and what it was measured to be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..checkpoint import Found
from ..checkpoint.known import Provenance


def write_card(folder: Path, known: Provenance, found: Found, name: str, adapter_only: bool) -> None:
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


def _what(known: Provenance, found: Found, adapter_only: bool) -> str:
    base = f"`{known.base_model}`" if known.base_model else "its base model"
    if adapter_only:
        kind = f"A PEFT adapter (with all else that was trained beside it) for {base}"
    else:
        kind = f"{base}, fine-tuned" + (
            " with an adapter, which is merged into the weights" if found.place.adapter else ""
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


def _training(known: Provenance, found: Found) -> str:
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
    rows = [f"| {s.get('use')} | `{s.get('path')}` | `{s.get('sha256')}` | {_state(s)} |" for s in sources]
    head = "## Data\n\n| use | path | sha256 | of |\n|---|---|---|---|\n"
    return head + "\n".join(rows) if rows else ""


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
    lines = ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join([f"{title}:\n", "| " + " | ".join(names) + " |", "|---" * len(names) + "|", *lines])


def _versions(known: Provenance) -> str:
    told = {"trained with": known.versions, "exported with": known.exported_with}
    rows = [f"- {what}: " + ", ".join(f"{k} {v}" for k, v in each.items()) for what, each in told.items() if each]
    return "## Versions\n\n" + "\n".join(rows) if rows else ""
