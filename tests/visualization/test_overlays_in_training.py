"""Overlays during training: in the run folder, in W&B and in TensorBoard, all read back from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dart_train import train
from dart_train.training import overlays
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import losses, make_recipe
from tests.training.test_metrics_log import wandb_history


def overrides(folder: Path, *more: str) -> list[str]:
    rows = f"data.validation=[{{path: {folder}/rows.json, images: {folder}/images}}]"
    return [rows, "train.max_steps=4", "train.per_device_batch_size=2", *more]


def pages(run: Path) -> dict[str, bytes]:
    found = {}
    for file in sorted((run / "overlays").rglob("*.png")):
        with Image.open(file) as page:
            found[str(file.relative_to(run / "overlays"))] = page.convert("RGB").tobytes()
    return found


def test_overlays_are_in_the_run_and_in_both_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe, run = make_recipe(tmp_path), tmp_path / "run"
    train(recipe, overrides(tmp_path, "train.overlay_steps=2", "log.report_to=[wandb, tensorboard]"))
    drawn = pages(run)
    assert list(drawn) == [f"step-00000{step}/sample-{i}.png" for step in (2, 4) for i in range(4)]
    named = [f"overlays/{i}.path" for i in range(4)]
    shown = [[row[name] for name in named] for row in wandb_history(run)[0] if named[0] in row]
    assert len(shown) == 2
    media = [next(run.glob(f"wandb/offline-run-*/files/{path}")) for step in shown for path in step]
    assert [Image.open(file).convert("RGB").tobytes() for file in media] == list(drawn.values())
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("overlays/3")] == [2, 4]
    assert len({np.frombuffer(page, np.uint8).tobytes() for page in drawn.values()}) >= 4


def test_overlays_are_drawn_at_the_served_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of this run trains at full tokens; a quarter is served."""
    kept, choose = [], overlays.choice_of_row

    def record(last: Any, *arguments: Any) -> Any:
        kept.append((last.visual_before[0], last.visual_after[0]))
        return choose(last, *arguments)

    monkeypatch.setattr(overlays, "choice_of_row", record)
    budgets = ["reduction.keep=0.25", "reduction.schedule={kind: elastic, choices: [1.0]}"]
    train(make_recipe(tmp_path), overrides(tmp_path, "train.overlay_steps=2", "train.max_steps=2", *budgets))
    assert kept and all(after == before // 4 for before, after in kept)


@pytest.mark.slow
def test_overlays_do_not_change_the_losses(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    for name, more in (("drawn", ["train.overlay_steps=1"]), ("plain", [])):
        train(recipe, overrides(tmp_path, f"train.output_dir={tmp_path / name}", *more))
    runs = [[row["loss"] for row in losses(tmp_path / name)] for name in ("drawn", "plain")]
    assert runs[0] == runs[1]
    assert not (tmp_path / "plain" / "overlays").exists()


def test_rows_without_images_are_reported_before_the_run(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    turns = [{"from": "human", "value": "what is it"}, {"from": "gpt", "value": "no image"}]
    (tmp_path / "blind.json").write_text(json.dumps([{"conversations": turns}]))
    with pytest.raises(ValueError, match=r"train\.overlay_steps: none of the first 64 rows"):
        train(recipe, [f"data.validation=[{{path: {tmp_path}/blind.json}}]", "train.overlay_steps=2"])
    assert not (tmp_path / "run").exists()


STILL = ["train.overlay_steps=2", "train.learning_rate=1e-9"]


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    more = [*STILL, "train.zero_stage=3", f"train.output_dir={folder / 'three'}"]
    return [{"recipe": str(recipe), "overrides": overrides(recipe.parent, *more)}]


@pytest.mark.deepspeed
def test_zero_3_overlays_equal_those_of_one_process(rank_runs: RankRuns) -> None:
    recipe, alone = rank_runs.recipe, rank_runs.folder / "alone"
    train(recipe, overrides(recipe.parent, *STILL, f"train.output_dir={alone}"))
    assert pages(rank_runs.folder / "three") == pages(alone) and len(pages(alone)) == 8
