"""SIGTERM and SIGUSR1 on two ranks: all ranks save the same step and exit, and no process or port is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dart_train.checkpoints import latest_complete
from dart_train.cli.options import STOPPED
from tests.faults.launched import Launched, logged_step, wait_for_step
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import make_recipe

pytestmark = pytest.mark.deepspeed
LONG = ["train.per_device_batch_size=1", "train.max_steps=100000", "train.save_steps=100000"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("stopping"))


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    """As a scheduler's early signal to one process."""
    run = folder / "run"
    overrides = [*LONG, f"train.output_dir={run}"]
    return [{"recipe": str(recipe), "overrides": overrides, "command": str(run), "signal": [1, 2, "SIGUSR1"]}]


def test_sigusr1_to_one_rank_saves_the_same_step_on_all(rank_runs: RankRuns) -> None:
    run, (codes, output) = rank_runs.folder / "run", rank_runs.command("run")
    assert codes == [STOPPED, STOPPED], output
    assert output.count("stopped at step 2 (another rank was requested to stop). Run the same command to resume") == 1
    assert logged_step(run) == 2 and latest_complete(run)[0] == run / "checkpoint-2"
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "way", ["all processes", "the command", pytest.param("its launcher", marks=pytest.mark.slow), "ctrl-c"]
)
def test_sigterm_all_ranks_save_the_same_step_and_exit(
    recipe: Path, tmp_path: Path, way: str, record_property: Callable[[str, object], None]
) -> None:
    """All processes: the signal that ends a job. The command: its own end, which DeepSpeed's launcher survives and the
    ranks notice. Its launcher: the process between the command and the ranks, which sends SIGTERM on to all of theirs.
    Ctrl-C: SIGINT to all processes, and then what the launcher sends."""
    run = tmp_path / "run"
    began = Launched(recipe, *LONG, "data.workers=2", f"train.output_dir={run}", log=tmp_path / "log")
    wait_for_step(began, run, 2)
    signalled = time.monotonic()
    if way in ("all processes", "ctrl-c"):
        os.killpg(began.runner.pid, signal.SIGTERM if way == "all processes" else signal.SIGINT)
    elif way == "its launcher":
        (launcher,) = began.launcher().children()
        launcher.terminate()
    else:
        began.runner.terminate()
    code, output = began.end(), began.log.read_text(errors="replace")
    record_property("seconds", time.monotonic() - signalled)
    assert code != 0
    assert output.count(f"stopped at step {logged_step(run)}") == 1 and "Run the same command to resume from" in output
    assert latest_complete(run)[0] == run / f"checkpoint-{logged_step(run)}"
    if way == "ctrl-c":  # the `deepspeed` command itself, which handles no signal, prints one
        assert output.count("Traceback") <= 1 and output.count("Ctrl-C again ends at once") == 1
    else:
        assert "Traceback" not in output
    assert not began.held_ports()
