"""kill -9 at random moments, also while a checkpoint is written: a resumed run has the same losses, bit for bit."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.killing import MOMENTS, SAVE, VICTIMS, drill
from tests.faults.results import record

MANY = int(os.environ.get("DART_TRAIN_DRILLS", "30"))


@pytest.mark.slow
@pytest.mark.deepspeed
def test_sigkill_twice_and_resume_equals_uninterrupted(tmp_path: Path) -> None:
    report = drill(tmp_path, [("rank 1", "write"), ("launcher", "step")], 8, seed=1)
    assert max(report.lost) <= SAVE


def plan_for(victim: str, chance: random.Random) -> tuple[str, str]:
    """If DeepSpeed's command is killed before its ranks start, they do not notice, and train to the end."""
    return victim, chance.choice(MOMENTS[:2] if victim == "launcher" else MOMENTS)


@pytest.mark.drill
@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_sigkill_many_times_and_resume_equals_uninterrupted(tmp_path: Path, stage: int) -> None:
    chance = random.Random(stage)
    plan = [plan_for(VICTIMS[i % len(VICTIMS)], chance) for i in range(MANY)]
    report = drill(tmp_path, plan, 10 * MANY, stage, f"train.zero_stage={stage}")
    done = f"kill -9 of {', '.join(sorted(set(report.kills)))}; 2 ranks, ZeRO-{stage}, a checkpoint every {SAVE} steps"
    lost = f"at most {max(report.lost)} steps a kill, {sum(report.lost)} in all; {report.incomplete} incomplete "
    lost += f"checkpoints left, none used; losses of all {10 * MANY} steps equal those of an undisturbed run, "
    lost += "bit for bit"
    record(f"kill, ZeRO-{stage}", done, MANY, lost)
