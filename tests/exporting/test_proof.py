"""An export that is not the run's model is never finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dart_train
from dart_train.exporting import verify as prove
from dart_train.exporting import verify_process as fresh
from dart_train.exporting import writing
from tests.fixtures.runs import Runs
from tests.zoo import FAMILIES, save_folder


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own is another test's promise, and takes seconds."""
    monkeypatch.setattr(prove, "_run", lambda room, job: fresh.main(job))


def spoil(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """`change` what was written, before it is proven."""
    write = writing._write_beside

    def spoilt(work: Any) -> None:
        write(work)
        change(work.folder)

    monkeypatch.setattr(writing, "_write_beside", spoilt)


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


@pytest.mark.parametrize("change,told", [
    (change_weight("vision_tower"), "weights that differ"),
    (change_weight("multi_modal_projector"), "weights that differ"),
    (change_weight("layers.4.mlp"), "weights that differ"),
    (lose_weight, "missing keys: model.multi_modal_projector"),
    (change_generation, "the generation config differs"),
])  # fmt: skip
def test_what_was_written_wrong_is_not_finished(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, told: str
) -> None:
    spoil(monkeypatch, change)
    with pytest.raises(RuntimeError, match=told):
        dart_train.export(runs("full"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_was_lost_on_the_way_is_noticed(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "merged", lambda adapted: adapted.base_model.unload())
    with pytest.raises(RuntimeError, match="logits differ by"):
        dart_train.export(runs("lora"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_taken_away(family: str, tmp_path: Path) -> None:
    save_folder(family, tmp_path / family)
    out = dart_train.export(tmp_path / family, tmp_path / "out")
    assert dart_train.load(out).model.config.model_type == FAMILIES[family].model().config.model_type


def test_another_dtype_is_met(runs: Runs, tmp_path: Path) -> None:
    out = dart_train.export(runs("lora"), tmp_path / "out", dtype="bfloat16", checkpoint=2)
    loaded = dart_train.load(out)
    assert loaded.model.dtype == torch.bfloat16 and loaded.provenance.step == 2


def test_what_was_measured_is_taken_along(runs: Runs, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(runs("full"), run)
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write(
            json.dumps({"step": 2, "eval_loss": 9.0}) + "\n" + json.dumps({"step": 4, "eval_loss": 1.25}) + "\n"
        )
    (run / "compare").mkdir()
    (run / "compare" / "table.csv").write_text("checkpoint,keep,exact_match\ntuned,0.111,0.625\n")
    out = dart_train.export(run, tmp_path / "out")
    told = json.loads((out / "provenance.json").read_text())["results"]
    assert told["validation"] == {"step": 4, "eval_loss": 1.25}
    assert told["compare"] == [{"checkpoint": "tuned", "keep": "0.111", "exact_match": "0.625"}]
    card = (out / "README.md").read_text()
    assert "| eval_loss | 1.25 |" in card and "| tuned | 0.111 | 0.625 |" in card


def test_data_that_changed_since_is_said_to_have(runs: Runs, tmp_path: Path) -> None:
    from dart_train.exporting.model_card import fingerprint

    file = tmp_path / "rows.json"
    file.write_text("[]")
    before = fingerprint(file, file.stat().st_mtime + 1)
    file.write_text("[1]")
    after = fingerprint(file, file.stat().st_mtime - 1)
    assert before["sha256"] != after["sha256"]
    assert (before["changed_since_training"], after["changed_since_training"]) == (False, True)
    assert fingerprint(tmp_path, 0)["of"] == "names and sizes of its data files"
    assert fingerprint(tmp_path / "gone", 0)["sha256"] is None
