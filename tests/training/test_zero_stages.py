"""One process, DDP and every ZeRO stage train the same model: the same losses and gradient norms in every step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dart_train import train
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import losses

pytestmark = pytest.mark.deepspeed
STAGES = ("ddp", "0", "1", "2", "3")
STEPS = 6
# Each mode with one way of making a batch of 8.
MODES = {
    "lora": [],
    # Small steps: rounding errors grow from step to step, and fast if all weights change.
    "full": ["parts.language={mode: full}", "parts.vision={mode: full}", "train.learning_rate=1e-4"],
}
BATCHES = {
    "lora": ["train.per_device_batch_size=1", "train.gradient_accumulation_steps=4",
             "train.gradient_checkpointing=true"],
    "full": ["train.per_device_batch_size=4"],
}  # fmt: skip


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    jobs = []
    for mode, changes in MODES.items():
        for stage in STAGES:
            overrides = [f"train.output_dir={folder / f'{mode}-{stage}'}", f"train.max_steps={STEPS}"]
            overrides += [f"train.zero_stage={0 if stage == 'ddp' else stage}", *changes, *BATCHES[mode]]
            jobs.append({"recipe": str(recipe), "ddp": stage == "ddp", "overrides": overrides})
    return jobs


@pytest.fixture(scope="module")
def folder(rank_runs: RankRuns) -> Path:
    """One run for each mode and stage, and for each mode that of a single process."""
    for mode, changes in MODES.items():
        run = rank_runs.folder / f"{mode}-one-process"
        train(rank_runs.recipe, [f"train.output_dir={run}", f"train.max_steps={STEPS}", *changes])
    return rank_runs.folder


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mode", MODES)
def test_every_zero_stage_trains_like_one_process(folder: Path, mode: str, stage: str) -> None:
    one_process, ranks = losses(folder / f"{mode}-one-process"), losses(folder / f"{mode}-{stage}")
    assert len(one_process) == len(ranks) == STEPS
    for name in ("loss", "grad_norm"):
        expected = [line[name] for line in one_process]
        assert [line[name] for line in ranks] == pytest.approx(expected, rel=2e-3), name
    for name in ("keep", "visual_before", "visual_after"):
        assert [line[name] for line in ranks] == [line[name] for line in one_process]


@pytest.mark.parametrize("mode", MODES)
def test_every_zero_stage_keeps_the_same_tokens(folder: Path, mode: str) -> None:
    for rank in (0, 1):
        kept = {(folder / f"{mode}-{stage}" / f"kept-{rank}.json").read_text() for stage in STAGES}
        assert len(kept) == 1
        assert len(set(json.loads(kept.pop()))) >= STEPS - 1
