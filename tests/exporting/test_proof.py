"""Verification: an export that differs from the run is not written, and nothing is left of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dart_train
from dart_train.exporting import verify, verify_process, writing
from tests.fixtures.run_scene import ROOT
from tests.fixtures.runs import Runs
from tests.zoo import FAMILIES, save_folder


@pytest.fixture(autouse=True)
def verify_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fresh process is tested in test_export.py; it takes seconds."""
    monkeypatch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))


def damage(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Applies `change` to the written folder before it is verified."""
    write = writing._write_metadata

    def write_and_change(job: Any) -> None:
        write(job)
        change(job.folder)

    monkeypatch.setattr(writing, "_write_metadata", write_and_change)


def change_weight(name: str) -> Any:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        key = next(key for key in weights if name in key)
        weights[key] = weights[key] + 1e-3 * torch.ones_like(weights[key])
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return change


def lose_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(key for key in weights if "multi_modal_projector" in key))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_generation(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": 7}))


@pytest.mark.parametrize("change,message", [
    (change_weight("vision_tower"), "weights that differ"),
    (change_weight("multi_modal_projector"), "weights that differ"),
    (change_weight("layers.4.mlp"), "weights that differ"),
    (lose_weight, "missing keys: model.multi_modal_projector"),
    (change_generation, "the generation config differs"),
])  # fmt: skip
def test_damaged_weights_and_config_fail_verification(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    damage(monkeypatch, change)
    with pytest.raises(RuntimeError, match=message):
        dart_train.export(runs("full"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_lora_that_was_not_merged_fails_verification(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "merge_adapter", lambda adapted: adapted.base_model.unload())
    with pytest.raises(RuntimeError, match="logits differ by"):
        dart_train.export(runs("lora"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_exported(family: str, tmp_path: Path) -> None:
    save_folder(family, tmp_path / family)
    out = dart_train.export(tmp_path / family, tmp_path / "out")
    assert dart_train.load(out).model.config.model_type == FAMILIES[family].model().config.model_type


def test_export_in_another_dtype(runs: Runs, tmp_path: Path) -> None:
    out = dart_train.export(runs("lora"), tmp_path / "out", dtype="bfloat16", checkpoint=2)
    loaded = dart_train.load(out)
    assert loaded.model.dtype == torch.bfloat16 and loaded.provenance.step == 2


def test_validation_and_comparison_results_are_exported(runs: Runs, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(runs("full"), run)
    with (run / "metrics.jsonl").open("a") as lines:
        for step, loss in ((2, 9.0), (4, 1.25), (6, 8.0)):  # the exported checkpoint is that of step 4
            lines.write(json.dumps({"step": step, "eval_loss": loss}) + "\n")
    (run / "compare").mkdir()
    (run / "compare" / "table.csv").write_text("checkpoint,keep,exact_match\ntuned,0.111,0.625\n")
    out = dart_train.export(run, tmp_path / "out")
    results = json.loads((out / "provenance.json").read_text())["results"]
    assert results["validation"] == {"step": 4, "eval_loss": 1.25}
    assert results["compare"] == [{"checkpoint": "tuned", "keep": "0.111", "exact_match": "0.625"}]
    card = (out / "README.md").read_text()
    assert "| eval_loss | 1.25 |" in card and "| tuned | 0.111 | 0.625 |" in card


def test_data_fingerprint_reports_changes_since_training(runs: Runs, tmp_path: Path) -> None:
    from dart_train.exporting.model_card import fingerprint_data

    file = tmp_path / "rows.json"
    file.write_text("[]")
    before = fingerprint_data(file, file.stat().st_mtime + 1)
    file.write_text("[1]")
    after = fingerprint_data(file, file.stat().st_mtime - 1)
    assert before["sha256"] != after["sha256"]
    assert (before["changed_since_training"], after["changed_since_training"]) == (False, True)
    assert fingerprint_data(tmp_path, 0)["of"] == "names and sizes of its data files"
    assert fingerprint_data(tmp_path / "gone", 0)["sha256"] is None


def test_dart_train_cannot_be_imported_in_the_fresh_process() -> None:
    script = Path(verify_process.__file__)
    code = f"""
import runpy, sys
sys.argv = ["script", {str(script)!r}]  # not a job: it fails after its imports
try:
    runpy.run_path({str(script)!r}, run_name="__main__")
except ValueError:
    pass
import dart_train
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ModuleNotFoundError: import of dart_train halted" in done.stderr
