"""DPO and GRPO on two ranks at every ZeRO stage that partitions, resumed at another one; a rank that is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dart_train.training.callbacks import read_metrics
from tests.faults.launched import Launched, wait_for_step
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.training.preference_scene import make_preference_recipe

pytestmark = pytest.mark.deepspeed
COMMON = ["train.per_device_batch_size=2", "train.max_steps=2", "train.gradient_checkpointing=true",
          "train.learning_rate=1e-3"]  # fmt: skip
FULL = ["parts.language={mode: full}", "parts.projector={mode: full}"]  # with a reference of its own
# Name -> method, ZeRO stage, what else.
RUNS: dict[str, tuple[str, int, list[str]]] = {
    "dpo-2": ("dpo", 2, ["train.save_steps=1"]),
    "dpo-3": ("dpo", 3, []),
    "dpo-full-2": ("dpo", 2, FULL),
    "dpo-full-3": ("dpo", 3, FULL),
    "grpo-2": ("grpo", 2, ["preference.beta=0.1"]),
    "grpo-3": ("grpo", 3, ["preference.beta=0.1"]),
}


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    own = {method: str(make_preference_recipe(folder, method)) for method in ("dpo", "grpo")}
    runs = RUNS | {"dpo-2-to-3": ("dpo", 3, [f"train.resume={folder / 'dpo-2/checkpoint-1'}"])}
    return [
        {
            "recipe": own[method],
            "overrides": [*COMMON, f"train.output_dir={folder / name}", f"train.zero_stage={stage}", *more],
            "command": str(folder / name),
        }
        for name, (method, stage, more) in runs.items()
    ]


def lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if "loss" in line]


@pytest.mark.parametrize("name", [name for name in RUNS if name.endswith("3")])
def test_zero_3_trains_like_zero_2_on_one_choice_of_tokens(rank_runs: RankRuns, name: str) -> None:
    """With an adapter the reference is the model without it; the complete model is gathered for rollouts."""
    found, expected = (lines(rank_runs.folder / run) for run in (name, f"{name[:-1]}2"))
    shared = {"dpo": ["rewards/margins", "logps/chosen"], "grpo": ["reward", "entropy", "kl"]}[name.split("-")[0]]
    for key in ("loss", "grad_norm", *shared):
        values = [[line[key] for line in run] for run in (found, expected)]
        assert len(values[0]) == 2 and values[0] == pytest.approx(values[1], rel=2e-3, abs=1e-5), key
    for run in (found, expected):
        assert run[-1]["rows_with_another_choice"] == 0
        assert run[-1]["rows_sharing_choice"] == 16  # two steps, and for grpo a reference


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_end_with_a_complete_checkpoint(rank_runs: RankRuns, name: str) -> None:
    codes, output = rank_runs.command(name)
    assert codes == [0, 0], output[-4000:]
    assert (rank_runs.folder / name / "checkpoint-2/complete.json").is_file()


def test_resume_at_another_zero_stage_continues_with_the_same_losses(rank_runs: RankRuns) -> None:
    found, expected = (lines(rank_runs.folder / run)[-1] for run in ("dpo-2-to-3", "dpo-2"))
    for key in ("step", "loss", "grad_norm", "logps/chosen"):
        assert found[key] == pytest.approx(expected[key], rel=1e-4), key
    complete = json.loads((rank_runs.folder / "dpo-2-to-3/checkpoint-2/complete.json").read_text())
    assert complete["stage"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_killed_rank_is_named_and_ends_the_others(tmp_path: Path, method: str) -> None:
    recipe, run = make_preference_recipe(tmp_path, method), tmp_path / "run"
    more = ["train.max_steps=100000", "train.save_steps=100000", "train.zero_stage=2", f"train.output_dir={run}"]
    began = Launched(recipe, "train.per_device_batch_size=2", *more, log=tmp_path / "log")
    wait_for_step(began, run, 1)
    killed = began.rank(1)
    assert killed is not None
    killed.kill()
    assert began.end() != 0
    output = began.log.read_text(errors="replace")
    assert f"rank 1 (process {killed.pid} on" in output and "is gone" in output
