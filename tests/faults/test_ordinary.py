"""Fault tests of the ordinary suite, run once more on their own for the table of drills."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.faults.results import record
from tests.fixtures.run_scene import ROOT

pytestmark = [pytest.mark.drill, pytest.mark.deepspeed]


@dataclass(frozen=True)
class Ordinary:
    """tests: arguments of pytest; kept: what they show when all of them pass; timed: what their recorded seconds
    measure, if they record any."""

    done: str
    kept: str
    tests: tuple[str, ...]
    timed: str = ""


T, D = "tests/training/test_", "tests/data/test_"
TABLE = {
    "requested to stop": Ordinary(
        "SIGTERM and SIGUSR1 to one process; SIGUSR1 to one of 2 ranks, SIGTERM to all processes and to the launcher's "
        "command alone",
        "nothing: the step finished and saved, resumed bit for bit; the ranks' exit code is 75, that of the launcher's "
        "command is its own",
        (f"{T}sigterm.py", f"{T}sigterm_on_ranks.py"),
        "from the signal to the last process gone",
    ),
    "disk full, read-only, closed, quota": Ordinary(
        "while saving, on one process and on 2 ranks (all of them or one alone), ZeRO-2 and 3, stop and continue",
        "the checkpoints that failed; the last good one is unchanged, byte for byte, all ranks stop or continue alike",
        (f"{T}disk_full.py", f"{T}disk_full_on_ranks.py"),
    ),
    "a rank dies or hangs": Ordinary(
        "kill -9 of either of 2 ranks; one of them suspended (timeout 90 s)",
        "the work since the last checkpoint; the message names the rank, exit code not zero, no process or port left",
        (f"{T}lost_rank.py",),
        "until the others had exited",
    ),
    "other ranks, other stage": Ordinary(
        "a run of 2 ranks and ZeRO-2 resumed by one process and at ZeRO-3, LoRA and full",
        "nothing: refused before a file was changed; the export that the message advises was made and trained from",
        (f"{T}resume_other_ranks.py",),
    ),
    "nan, inf, bad gradient": Ordinary(
        "one process, and one rank of 2, under DDP and ZeRO 0 to 3, fp32 and bf16; an exploding learning rate",
        "the NaN and Inf steps: taken by no rank, skipped or stopped at as the recipe states, row ids recorded",
        (f"{T}nan.py", f"{T}nan_on_ranks.py"),
    ),
    "changed recipe, base, version": Ordinary(
        "each changed before a resume",
        "nothing: refused with all differences listed, no file changed; --force continues with a warning",
        (f"{T}resume_changed.py",),
    ),
    "a second run in the same folder": Ordinary(
        "started while the first one runs, and after it was killed",
        "nothing: refused, nothing changed; a killed run holds no lock",
        (f"{T}run_lock.py",),
    ),
    "hostile data and checkpoints": Ordinary(
        "paths and links out of the folder, decompression bombs, images 100,000 wide, damaged bytes, malformed JSON, "
        "junk rows, URLs, pickles",
        "the bad rows: reported by name and counted; no file outside the folder opened, nothing unpickled",
        (
            f"{D}nothing_outside.py",
            f"{D}images.py",
            f"{D}formats.py",
            f"{D}sources.py",
            f"{D}dataset.py",
            f"{D}check.py",
            f"{T}pickles.py",
        ),
    ),
    "secrets": Ordinary(
        "keys and passwords put into the environment, then searched for in every file and in the output of a training "
        "and of a comparison",
        "nothing: none found in log, checkpoint, recipe, report, W&B's files or TensorBoard's",
        ("tests/test_secrets.py",),
    ),
    "W&B unreachable, silent, disk full": Ordinary(
        "no server, a server that never answers, a full disk from the start and in the middle",
        "what W&B could not write; training finished, the offline files are complete where there was room",
        (f"{T}wandb_unreachable.py",),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_faults_of_the_ordinary_suite(tmp_path: Path, name: str) -> None:
    """A row is written where all have passed and none was skipped."""
    drill, report = TABLE[name], tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *drill.tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    assert suite.attrib["skipped"] == "0", done.stdout[-3000:]
    seconds = [float(each.attrib["value"]) for each in suite.iter("property") if each.attrib["name"] == "seconds"]
    assert bool(seconds) == bool(drill.timed)
    took = f"; {min(seconds):.0f} to {max(seconds):.0f} s {drill.timed}" if seconds else ""
    record(name, drill.done, f"{suite.attrib['tests']} tests", f"{drill.kept}{took}")
