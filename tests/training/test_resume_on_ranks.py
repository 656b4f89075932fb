"""Interrupted and resumed on two ranks is uninterrupted, in whatever way the state is spread over them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fixtures.run_scene import ROOT, launch, losses, make_recipe

pytestmark = pytest.mark.deepspeed
FULL = ["parts.vision={mode: full}", "parts.language={mode: full}"]
LORA = ["parts.lora={rank: 4, dropout: 0.2}", "train.gradient_checkpointing=true"]
RUNS = {
    "lora-2": [*LORA, "train.zero_stage=2"],
    "lora-3": [*LORA, "train.zero_stage=3"],
    "lora-3-bf16": [*LORA, "train.zero_stage=3", "train.precision=bf16", "parts.projector={mode: full}"],
    "full-1": [*FULL, "train.zero_stage=1"],
    "full-3": [*FULL, "train.zero_stage=3", "train.gradient_accumulation_steps=2"],
    "full-3-bf16": [*FULL, "train.zero_stage=3", "train.precision=bf16", "train.gradient_checkpointing=true"],
    "distilled-3": [*LORA, "train.zero_stage=3", "distill={enabled: true}"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    recipe, jobs = make_recipe(folder), []
    rows = json.dumps({"path": str(folder / "rows.json"), "images": str(folder / "images"), "limit": 3})
    for name, changes in RUNS.items():
        overrides = [f"train.output_dir={folder / name}", "train.per_device_batch_size=1", "train.max_steps=6"]
        overrides += ["train.save_steps=3", f"data.validation=[{rows}]", *changes]
        job = {"recipe": str(recipe), "overrides": overrides}
        jobs += [job, {**job, "forget": ["checkpoint-6"]}]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = launch(ROOT / "tests/fixtures/job_runner.py", str(folder / "jobs.json"), timeout=3000)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_resumed_is_uninterrupted(folder: Path, name: str) -> None:
    whole = [json.loads(line) for line in (folder / name / "uninterrupted.jsonl").read_text().splitlines()]
    told = ("step", "loss", "grad_norm", "keep", "visual_after", "eval_loss", "eval_accuracy_at_full")
    before = [{key: line.get(key) for key in told} for line in whole if "loss" in line or "eval_loss" in line]
    after = losses(folder / name)
    assert [line["step"] for line in after] == [1, 2, 3, 4, 5, 6]
    everything = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    assert [{key: line.get(key) for key in told} for line in everything
            if "loss" in line or "eval_loss" in line] == before  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_the_weights_can_be_loaded_elsewhere(folder: Path, name: str) -> None:
    """Gathered under ZeRO-3: whole tensors under the names of the model."""
    from safetensors.torch import load_file

    checkpoint = folder / name / "checkpoint-6"
    adapter = checkpoint / "adapter_model.safetensors"
    weights = load_file(adapter if adapter.exists() else checkpoint / "model.safetensors")
    assert all(tensor.numel() for tensor in weights.values())
    assert any("multi_modal_projector" in key for key in weights)
    assert any(key.endswith("q_proj.lora_B.weight" if adapter.exists() else "q_proj.weight") for key in weights)
