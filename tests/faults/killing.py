"""A run that is killed at random moments and restarted by the same command, many times."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tqdm import tqdm

from dart_train.checkpoints import latest_complete, step_of
from tests.faults.launched import SMALL, Launched, logged_step, wait, writing
from tests.fixtures.run_scene import losses, make_recipe

VICTIMS = ("rank 0", "rank 1", "launcher", "node launcher", "all")  # DeepSpeed's command starts a launcher of its own
MOMENTS = ("step", "write", "start")
SAVE = 2


@dataclass
class KillReport:
    """What the kills cost."""

    kills: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)  # steps to repeat after each kill
    incomplete: int = 0  # kills that left an incomplete checkpoint


def drill(folder: Path, plan: list[tuple[str, str]], steps: int, seed: int, *changes: str) -> KillReport:
    """Kills by `plan` (victim, moment), lets the run finish, and compares it with an uninterrupted run."""
    recipe, chance, report = make_recipe(folder), random.Random(seed), KillReport()
    overrides = [*SMALL, f"train.max_steps={steps}", f"train.save_steps={SAVE}", *changes]
    run, uninterrupted = folder / "run", folder / "uninterrupted"
    for number, (victim, moment) in enumerate(tqdm(plan, desc="kills")):
        name, before = f"kill {number} ({victim}, {moment})", _identity(run)
        began = Launched(recipe, *overrides, f"train.output_dir={run}", log=folder / "log")
        _kill_at(began, run, victim, moment, chance, before)
        code = began.end()
        # DeepSpeed's command treats a killed node launcher as a successful one.
        assert code != 0 or victim == "node launcher", f"{name}: the command ended as if nothing had happened"
        assert not began.held_ports(), f"{name}: a port is held"
        kept, reached = _kept(run), logged_step(run)
        report.kills.append(f"{victim} at a {moment}")
        report.lost.append(max(0, reached - kept))
        report.incomplete += writing(run)
        assert report.lost[-1] <= SAVE, f"{name}: at step {reached}, resumes from {kept}"
    last = Launched(recipe, *overrides, f"train.output_dir={run}", log=folder / "log")
    assert last.end() == 0, last.log.read_text(errors="replace")[-3000:]
    undisturbed = Launched(recipe, *overrides, f"train.output_dir={uninterrupted}", log=folder / "log.uninterrupted")
    assert undisturbed.end() == 0, undisturbed.log.read_text(errors="replace")[-3000:]
    same = ("step", "loss", "grad_norm", "keep", "visual_after")
    compared = [[{name: line[name] for name in same} for line in losses(each)] for each in (run, uninterrupted)]
    assert compared[0] == compared[1], "the losses are not those of the uninterrupted run"
    return report


def _kill_at(began: Launched, run: Path, victim: str, moment: str, chance: random.Random, before: int) -> None:
    over, kept = (lambda: began.runner.poll() is not None), _kept(run)
    if moment == "start":
        wait(lambda: began.rank(1) or over(), "no rank began", began)
        time.sleep(chance.uniform(0, 15))
    else:
        wait(lambda: _identity(run) != before or over(), "it did not begin", began)
        assert logged_step(run) >= kept, f"did not resume from {kept}, but from {logged_step(run)}"
        goal = logged_step(run) + chance.randint(1, 2)
        wait(lambda: logged_step(run) >= goal or over(), "no step was done", began)
        if moment == "write":
            wait(lambda: writing(run) or over(), "no checkpoint was written", began, pause=0.002)
        time.sleep(chance.uniform(0, 0.05 if moment == "write" else 0.5))
    assert not over(), f"ended by itself before the kill\n{began.log.read_text(errors='replace')[-3000:]}"
    _kill(began, victim)


def _kept(run: Path) -> int:
    """The step that the next start resumes from."""
    found = latest_complete(run)[0]
    return step_of(found) if found else 0


def _identity(run: Path) -> int:
    """Inode of the metrics file, which every start replaces."""
    file = run / "metrics.jsonl"
    return file.stat().st_ino if file.exists() else 0


def _kill(began: Launched, victim: str) -> None:
    family = began.family()
    if victim == "launcher":
        victims = [each for each in family if each.pid == began.runner.pid]
    elif victim == "node launcher":
        victims = [each for each in family if "deepspeed.launcher.launch" in each.cmdline()]
    elif victim == "all":
        victims = family
    else:
        rank = began.rank(int(victim[-1]))
        victims = [rank] if rank else []
    assert victims, f"there is no {victim} to kill"
    for process in victims:
        try:
            process.kill()
        except psutil.NoSuchProcess:  # exited together with another process
            continue
