"""Runs, checkpoints and exports written by earlier code still load, answer the same, and resume.

`fixtures/written_before/README.md` states by which commit the files were written, and how."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dart_train

WRITTEN = Path(__file__).parent / "fixtures" / "written_before"
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "run": ("run", {}),
    "checkpoint-2": ("run/checkpoint-2", {}),
    "checkpoint-4": ("run/checkpoint-4", {}),
    "exported": ("exported", {}),
    "adapter": ("adapter", {}),
    "keep-8": ("run", {"keep": 8}),
    "random": ("exported", {"reducer": "random", "keep": 0.25}),
}

ROUNDING = {"rtol": 1e-4, "atol": 1e-4}  # of another processor than the one that wrote the files


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in; paths in the files are relative to it."""
    folder = tmp_path / "written"
    shutil.copytree(WRITTEN, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_written_before_loads_with_the_same_logits(here: Path, way: str) -> None:
    path, options = WAYS[way]
    stored = load_file("logits.safetensors")
    batch = {name: stored[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    loaded = dart_train.load(path, device="cpu", **options)
    assert loaded.attached is not None
    with torch.no_grad():
        reduced = loaded.model(**batch).logits[:, -4:]
        kept = loaded.attached.last.kept_visual
        with loaded.attached.paused():
            full = loaded.model(**batch).logits[:, -4:]
    assert torch.equal(kept, stored[f"kept.{way}"])
    torch.testing.assert_close(reduced, stored[f"logits.{way}"], **ROUNDING)
    torch.testing.assert_close(full, stored[f"logits_full.{way}"], **ROUNDING)
    assert not torch.allclose(reduced, full, atol=1e-3)  # the reduction is part of what was compared


def test_written_before_provenance_is_read(here: Path) -> None:
    known = dart_train.load("exported", device="cpu").provenance
    assert (known.base_model, known.step) == ("model", 4)
    assert known.recipe is not None and known.recipe["parts"]["lora"]["rank"] == 2


def test_written_before_methods_are_named_alike(here: Path) -> None:
    """`reducer.json` names a method of ours by its short name, wherever its class is defined."""
    for name in dart_train.REDUCERS:
        assert dart_train.from_config({"method": name}).to_dict()["method"] == name
    again = dart_train.load("exported", device="cpu").attached
    assert again is not None
    stages = json.loads(Path("exported/reducer.json").read_text())["stages"]
    now = [reducer.to_dict() for reducer in again.reducers]  # with options that came later, at their defaults
    assert [{key: options[key] for key in stage} for stage, options in zip(stages, now, strict=True)] == stages


def test_written_before_resumes(here: Path) -> None:
    """The stored recipe equals today's but for the versions of packages: nothing else stops a resume."""
    command = [sys.executable, "-m", "dart_train", "train", "recipe.yaml", "train.max_steps=6"]
    refused = subprocess.run([*command, "train.learning_rate=3e-3"], capture_output=True, text=True, check=False)
    versions = json.loads(Path("run/versions.json").read_text())
    changed = re.findall(r"^  ([\w.-]+): ", refused.stderr, re.MULTILINE)
    assert refused.returncode == 2
    assert [name for name in changed if name not in versions] == ["train.learning_rate"]
    outcome = dart_train.train("recipe.yaml", ["train.max_steps=6"], force=True)
    assert (outcome.steps, outcome.checkpoint) == (6, Path("run/checkpoint-6"))
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
