"""Two hosts: the command of the README, a network link that is cut, a host that is killed, and the run that resumes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dart_train.checkpoints import latest_complete
from tests.faults.hosts import ADDRESSES, Hosts, two_hosts
from tests.faults.launched import Launched, logged_step, wait_for_step
from tests.faults.results import record
from tests.fixtures.run_scene import losses, make_recipe

pytestmark = [pytest.mark.drill, pytest.mark.deepspeed]
TIMEOUT = 60
RUN = ["train.per_device_batch_size=1", "train.save_steps=2", f"train.timeout_seconds={TIMEOUT}"]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts(str(os.getpid() % 10_000)) as made:
        if made is None:
            pytest.skip("network namespaces can only be made by root")
        yield made


def begin(hosts: Hosts, recipe: Path, folder: Path, *changes: str) -> list[Launched]:
    """deepspeed --hostfile hosts --no_ssh --node_rank N --master_addr A --master_port P launch/train.py RECIPE"""
    table = folder / "hosts"
    table.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    started = []
    for number in (0, 1):
        how = ["--hostfile", str(table), "--no_ssh", "--node_rank", str(number), "--master_addr", ADDRESSES[0]]
        log, link = folder / f"log-{number}", {"GLOO_SOCKET_IFNAME": hosts.links[number]}
        started.append(Launched(recipe, *RUN, *changes, log=log, how=how, before=hosts.on(number), port=29511, **link))
    return started


@pytest.mark.parametrize("harm", ["link cut", "host killed"])
def test_lost_host_ends_the_other_and_the_run_resumes(hosts: Hosts, tmp_path: Path, harm: str) -> None:
    recipe, run = make_recipe(tmp_path), tmp_path / "run"
    steps = "train.max_steps=100000"
    both = begin(hosts, recipe, tmp_path, steps, f"train.output_dir={run}")
    wait_for_step(both[0], run, 3)
    if harm == "link cut":
        hosts.cut()
    else:
        both[1].kill_all()
    began = time.monotonic()
    ended = [each.end() for each in both[: 2 if harm == "link cut" else 1]]
    seconds = time.monotonic() - began
    assert all(ended)
    reached = logged_step(run)
    hosts.mend()
    found = latest_complete(run)[0]
    assert found is not None
    goal = int(found.name.split("-")[1]) + 4
    again = begin(hosts, recipe, tmp_path, f"train.max_steps={goal}", f"train.output_dir={run}")
    assert [each.end() for each in again] == [0, 0], again[0].log.read_text()[-3000:]
    assert losses(run)[-1]["step"] == goal
    noticed = re.findall(r"no progress for (\d+) s", "".join(each.log.read_text() for each in both))
    how = f"detected after {max(map(int, noticed))} s of silence" if noticed else "detected by the closed connection"
    lost = f"{reached - (goal - 4)} steps; {how} (timeout {TIMEOUT} s), all ended within {seconds:.0f} s, then resumed"
    record(f"two hosts, {harm}", "two network namespaces, one rank each, ZeRO-2", 1, lost)
