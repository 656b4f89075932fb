"""A rank that dies or hangs: the others exit within the timeout, and name it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dart_train.training.liveness import LOST
from tests.faults.launched import Launched, wait, wait_for_step
from tests.fixtures.run_scene import make_recipe

pytestmark = pytest.mark.deepspeed
LONG = ["train.per_device_batch_size=1", "train.max_steps=100000", "train.save_steps=100000"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("peers"))


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_rank_ends_the_others(
    recipe: Path, tmp_path: Path, victim: int, record_property: Callable[[str, object], None]
) -> None:
    run = tmp_path / "run"
    began = Launched(recipe, *LONG, f"train.output_dir={run}", log=tmp_path / "log")
    wait_for_step(began, run, 1)
    killed = began.rank(victim)
    assert killed is not None
    since = time.monotonic()
    killed.kill()
    assert began.end() != 0
    record_property("seconds", time.monotonic() - since)
    output = began.log.read_text(errors="replace")
    assert f"rank {victim} (process {killed.pid} on" in output and "is gone" in output
    assert not began.held_ports()


@pytest.mark.slow
def test_suspended_rank_is_named_after_the_timeout(
    recipe: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Suspended, not dead: no connection closes, and DeepSpeed's groups would wait for half an hour."""
    run = tmp_path / "run"
    more = ["train.timeout_seconds=90", "train.zero_stage=3"]
    began = Launched(recipe, *LONG, *more, f"train.output_dir={run}", log=tmp_path / "log")
    wait_for_step(began, run, 1)
    stopped = began.rank(1)
    assert stopped is not None
    since = time.monotonic()
    stopped.suspend()
    wait(lambda: began.rank(0) is None, "the other rank waits on", began)
    record_property("seconds", time.monotonic() - since)
    with contextlib.suppress(psutil.NoSuchProcess):
        stopped.resume()  # what the launcher cannot end while it is stopped
    assert began.end() != 0
    output = began.log.read_text(errors="replace")
    assert f"rank 1 (process {stopped.pid} on" in output and "is suspended" in output
    assert f"return code = {LOST}" in output
