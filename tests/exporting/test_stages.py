"""Runs of every ZeRO stage export alike: full weights from the partitions of several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

import dart_train
from dart_train.exporting import verify, verify_process
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.runs import logits

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow]
STAGES = (0, 1, 2, 3)
MODES = {
    "lora": ["parts.vision={mode: lora}", "train.learning_rate=1e-3"],
    # Small steps: rounding grows from step to step, and with all weights moving it grows fast.
    "full": ["parts.language={mode: full}", "parts.vision={mode: full}", "train.learning_rate=1e-4"],
}
SHORT = ["train.max_steps=4", "train.save_steps=2", "train.per_device_batch_size=4"]
LAST = 4


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    kinds = [(f"{mode}-{stage}", changes, stage) for mode, changes in MODES.items() for stage in STAGES]
    return [
        {
            "recipe": str(recipe),
            "overrides": [f"train.output_dir={folder / name}", f"train.zero_stage={stage}", *changes, *SHORT],
        }
        for name, changes, stage in kinds
    ]


@pytest.fixture
def folder(rank_runs: RankRuns) -> Path:
    return rank_runs.folder


@pytest.fixture
def base(rank_runs: RankRuns) -> torch.Tensor:
    """Logits of the model that the runs started from."""
    return logits(AutoModelForImageTextToText.from_pretrained(rank_runs.recipe.parent / "llava").eval())


@pytest.fixture
def exported(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plain transformers on the export of a run. Verified in this process, to save time."""
    monkeypatch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))

    def made(name: str, checkpoint: int = LAST) -> Any:
        out = dart_train.export(folder / name, tmp_path / f"{name}-{checkpoint}", checkpoint=checkpoint)
        return AutoModelForImageTextToText.from_pretrained(out).eval()

    return made


def as_trained(run: Path, checkpoint: int = LAST) -> Any:
    """The run's model, by plain transformers and plain PEFT alone."""
    folder = run / f"checkpoint-{checkpoint}"
    if not (folder / "adapter_config.json").is_file():
        return AutoModelForImageTextToText.from_pretrained(folder).eval()
    base = AutoModelForImageTextToText.from_pretrained(run.parent.parent / "llava")
    return PeftModel.from_pretrained(base, folder).eval()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).pow(2).mean().sqrt())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mode", MODES)
def test_export_has_the_logits_of_its_run(
    exported: Any, folder: Path, base: torch.Tensor, mode: str, stage: int
) -> None:
    name = f"{mode}-{stage}"
    trained = logits(as_trained(folder / name))
    assert difference(logits(exported(name)), trained) < 1e-3 * difference(base, trained)


@pytest.mark.parametrize("stage", STAGES)
def test_export_of_an_earlier_checkpoint(exported: Any, folder: Path, stage: int) -> None:
    name = f"lora-{stage}"
    earlier, later = (logits(as_trained(folder / name, step)) for step in (2, LAST))
    assert difference(logits(exported(name, checkpoint=2)), earlier) < 1e-3 * difference(earlier, later)


@pytest.mark.parametrize("mode", MODES)
def test_every_zero_stage_exports_the_same(exported: Any, base: torch.Tensor, mode: str) -> None:
    plain, *others = (logits(exported(f"{mode}-{stage}")) for stage in STAGES)
    for other in others:
        assert difference(other, plain) < 0.05 * difference(plain, base)
