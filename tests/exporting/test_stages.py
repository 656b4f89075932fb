"""Runs of every ZeRO stage are taken away alike: whole weights come out of the pieces of several ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

import dart_train
from dart_train.exporting import verify, verify_process
from tests.fixtures.run_scene import ROOT, launch, make_recipe
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    recipe = make_recipe(folder)
    (folder / "jobs.json").write_text(json.dumps(_jobs(recipe, folder)))
    done = launch(ROOT / "tests/fixtures/job_runner.py", str(folder / "jobs.json"), timeout=2400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder


def _jobs(recipe: Path, folder: Path) -> list[dict[str, Any]]:
    kinds = [(f"{mode}-{stage}", changes, stage) for mode, changes in MODES.items() for stage in STAGES]
    return [
        {
            "recipe": str(recipe),
            "overrides": [f"train.output_dir={folder / name}", f"train.zero_stage={stage}", *changes, *SHORT],
        }
        for name, changes, stage in kinds
    ]


@pytest.fixture
def exported(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plain transformers on the export of a run. Its proof runs here: a process of its own is another test's."""
    monkeypatch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))

    def made(name: str, checkpoint: int = LAST) -> Any:
        out = dart_train.export(runs / name, tmp_path / f"{name}-{checkpoint}", checkpoint=checkpoint)
        return AutoModelForImageTextToText.from_pretrained(out).eval()

    return made


def as_trained(run: Path, checkpoint: int = LAST) -> Any:
    """The run's model, by plain transformers and plain PEFT alone."""
    folder = run / f"checkpoint-{checkpoint}"
    if not (folder / "adapter_config.json").is_file():
        return AutoModelForImageTextToText.from_pretrained(folder).eval()
    base = AutoModelForImageTextToText.from_pretrained(run.parent / "llava")
    return PeftModel.from_pretrained(base, folder).eval()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).pow(2).mean().sqrt())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mode", MODES)
def test_an_export_gives_the_logits_of_its_run(exported: Any, runs: Path, mode: str, stage: int) -> None:
    name = f"{mode}-{stage}"
    trained, base = logits(as_trained(runs / name)), logits(AutoModelForImageTextToText.from_pretrained(runs / "llava"))
    assert apart(logits(exported(name)), trained) < 1e-3 * apart(base, trained)


@pytest.mark.parametrize("stage", STAGES)
def test_an_earlier_checkpoint_of_it_can_be_taken_too(exported: Any, runs: Path, stage: int) -> None:
    name = f"lora-{stage}"
    earlier, later = (logits(as_trained(runs / name, step)) for step in (2, LAST))
    assert apart(logits(exported(name, checkpoint=2)), earlier) < 1e-3 * apart(earlier, later)


@pytest.mark.parametrize("mode", MODES)
def test_every_stage_gives_the_same_export(exported: Any, runs: Path, mode: str) -> None:
    plain, *others = (logits(exported(f"{mode}-{stage}")) for stage in STAGES)
    base = logits(AutoModelForImageTextToText.from_pretrained(runs / "llava").eval())
    for other in others:
        assert apart(other, plain) < 0.05 * apart(plain, base)
