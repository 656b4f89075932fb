"""A run on two ranks that is interrupted and resumed equals one that is not, whatever the ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import losses

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


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    jobs: list[Job] = []
    rows = json.dumps({"path": str(recipe.parent / "rows.json"), "images": str(recipe.parent / "images"), "limit": 3})
    for name, changes in RUNS.items():
        overrides = [f"train.output_dir={folder / name}", "train.per_device_batch_size=1", "train.max_steps=6"]
        overrides += ["train.save_steps=3", f"data.validation=[{rows}]", *changes]
        job = {"recipe": str(recipe), "overrides": overrides}
        jobs += [job, {**job, "forget": ["checkpoint-6"]}]
    return jobs


@pytest.fixture
def folder(rank_runs: RankRuns) -> Path:
    return rank_runs.folder


@pytest.mark.parametrize("name", RUNS)
def test_resumed_equals_uninterrupted(folder: Path, name: str) -> None:
    uninterrupted = [json.loads(line) for line in (folder / name / "uninterrupted.jsonl").read_text().splitlines()]
    compared = ("step", "loss", "grad_norm", "keep", "visual_after", "eval_loss", "eval_accuracy_at_full")
    before = [
        {key: line.get(key) for key in compared} for line in uninterrupted if "loss" in line or "eval_loss" in line
    ]
    after = losses(folder / name)
    assert [line["step"] for line in after] == [1, 2, 3, 4, 5, 6]
    everything = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    assert [{key: line.get(key) for key in compared} for line in everything
            if "loss" in line or "eval_loss" in line] == before  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_saved_weights_are_complete(folder: Path, name: str) -> None:
    """Under ZeRO-3 they are gathered: full tensors under the names of the model."""
    from safetensors.torch import load_file

    checkpoint = folder / name / "checkpoint-6"
    adapter = checkpoint / "adapter_model.safetensors"
    weights = load_file(adapter if adapter.exists() else checkpoint / "model.safetensors")
    assert all(tensor.numel() for tensor in weights.values())
    assert any("multi_modal_projector" in key for key in weights)
    assert any(key.endswith("q_proj.lora_B.weight" if adapter.exists() else "q_proj.weight") for key in weights)
