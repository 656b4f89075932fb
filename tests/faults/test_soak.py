"""A long run with validation and checkpoints: memory, file handles, hooks and step time are stable."""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import TrainerCallback

from dart_train import train
from dart_train.training import run as run_module
from tests.faults.results import record
from tests.fixtures.run_scene import losses, make_recipe

STEPS = int(os.environ.get("DART_TRAIN_SOAK", "5000"))
EVERY = max(1, STEPS // 50)


class Probe(TrainerCallback):
    """Measures the process every few steps."""

    def __init__(self) -> None:
        self.measured: list[dict[str, float]] = []
        self.spent = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % EVERY:
            return
        process = psutil.Process()
        hooks = [getattr(module, name) for module in model.modules() for name in vars(module) if name.endswith("hooks")]
        measured = {"memory": process.memory_info().rss / 2**20, "handles": process.num_fds()}
        spent, self.spent = time.process_time() - self.spent, time.process_time()
        self.measured.append({**measured, "hooks": sum(map(len, filter(None, hooks))), "threads": process.num_threads(),
                          "CPU ms a step": 1000 * spent / EVERY})  # fmt: skip


@pytest.mark.drill
def test_soak_memory_handles_hooks_and_speed_are_stable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, probe, reporters = make_recipe(tmp_path), Probe(), run_module._reporters
    monkeypatch.setattr(run_module, "_reporters", lambda prepared: [*reporters(prepared), probe])
    rows = json.dumps({"path": str(tmp_path / "rows.json"), "images": str(tmp_path / "images"), "limit": 3})
    often = max(2, STEPS // 100)
    more = [f"train.max_steps={STEPS}", "train.per_device_batch_size=2", f"data.validation=[{rows}]"]
    more += [f"train.eval_steps={often}", f"train.save_steps={often}"]
    more += [f"train.overlay_steps={often}", "log.report_to=[wandb, tensorboard]"]
    train(recipe, [*more, "train.on_nan=skip", "train.learning_rate=1e-5"])
    half = len(probe.measured) // 2
    early, late = probe.measured[half // 2 : half], probe.measured[-max(1, half // 2) :]
    mean = {
        name: [statistics.fmean(each[name] for each in part) for part in (early, late)] for name in probe.measured[0]
    }
    seconds = [line["step_seconds"] for line in losses(tmp_path / "run")]
    paces = [statistics.median(seconds[STEPS // 4 : STEPS // 2]), statistics.median(seconds[-STEPS // 4 :])]
    assert mean["hooks"][0] == mean["hooks"][1] and mean["threads"][0] == mean["threads"][1]
    assert mean["handles"][1] <= mean["handles"][0] + 2
    assert mean["memory"][1] <= 1.05 * mean["memory"][0], mean
    numbers = ", ".join(f"{name} {first:.0f} -> {last:.0f}" for name, (first, last) in mean.items())
    pace = f"median step {1000 * paces[0]:.0f} -> {1000 * paces[1]:.0f} ms"
    lost = f"nothing: {numbers} (memory in MiB), {pace} (second and last quarter)"
    record("soak", f"{STEPS} steps of the tiny model, validated, saved, drawn and tracked every {often}", 1, lost)
