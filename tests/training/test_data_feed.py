"""Streaming, grouping by length, the rows of a step on any number of ranks, and the best checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dart_train import train
from dart_train.common.distributed import RankInfo
from dart_train.config import load_recipe
from dart_train.training.data_feed import TrainFeed
from tests.fixtures.run_scene import losses, make_recipe
from tests.zoo import FAMILIES


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("scene"))


def go(recipe: Path, run: Path, *overrides: str) -> list[dict[str, Any]]:
    train(recipe, [f"train.output_dir={run}", "train.per_device_batch_size=2", "train.max_steps=4", *overrides])
    return losses(run)


def source(recipe: Path, **more: Any) -> str:
    return json.dumps([{"path": str(recipe.parent / "rows.json"), "images": str(recipe.parent / "images"), **more}])


def test_streamed_rows_train_and_resume(recipe: Path, tmp_path: Path) -> None:
    stream = [f"data.train={source(recipe, streaming=True)}", "train.save_steps=2"]
    uninterrupted = go(recipe, tmp_path, *stream)
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = go(recipe, tmp_path, *stream)
    assert [line["loss"] for line in again] == [line["loss"] for line in uninterrupted]
    assert len({line["loss"] for line in uninterrupted}) == 4


def test_group_by_length_reduces_padding(recipe: Path, tmp_path: Path) -> None:
    """Compared with rows in random order."""

    def padding(*more: str) -> float:
        read = load_recipe(recipe, ["train.per_device_batch_size=4", "train.max_steps=6", *more])
        feed = TrainFeed.open(read, RankInfo(0, 1, 1, False), FAMILIES["llava"].processor())
        masks = [batch["attention_mask"] for batch in feed.loader(0)]
        return 1 - sum(float(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding("data.group_by_length=null") == padding("data.group_by_length=true") < 0.6 * padding()
    assert len(go(recipe, tmp_path, "data.group_by_length=true")) == 4


@pytest.mark.parametrize(("batch", "world", "accumulation"), [(4, 2, 1), (2, 2, 2), (1, 2, 4), (8, 1, 1), (2, 1, 4)])
def test_a_step_has_the_same_rows_for_any_number_of_ranks_and_forwards(
    recipe: Path, batch: int, world: int, accumulation: int
) -> None:
    """Also with rows grouped by length: grouping applies inside a step."""
    shape = [f"train.per_device_batch_size={batch}", f"train.gradient_accumulation_steps={accumulation}"]
    read = load_recipe(recipe, [*shape, "data.group_by_length=true", "train.max_steps=3"])
    one = load_recipe(recipe, ["train.per_device_batch_size=8", "data.group_by_length=true", "train.max_steps=3"])
    processor = FAMILIES["llava"].processor()
    found = [TrainFeed.open(read, RankInfo(rank, world, world, False), processor) for rank in range(world)]
    alone = TrainFeed.open(one, RankInfo(0, 1, 1, False), processor)
    for step in range(3):
        rows = [name for feed in found for micro in range(accumulation) for name in feed.row_ids(step, micro)]
        assert sorted(rows) == sorted(alone.row_ids(step, 0))


@pytest.mark.parametrize(("metric", "better"), [("loss", min), ("accuracy", max)])
def test_best_checkpoint_is_kept(recipe: Path, tmp_path: Path, metric: str, better: Any) -> None:
    rows = source(recipe, limit=6)
    validated = [f"data.validation={rows}", "train.eval_steps=1", "train.save_steps=1", f"train.best_metric={metric}"]
    go(recipe, tmp_path, *validated, "train.save_total_limit=1", "train.learning_rate=3e-2", "train.max_steps=5")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    metrics = {line["step"]: line[f"eval_{metric}"] for line in lines if "eval_loss" in line}
    state = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["best_metric"] == better(metrics.values())
    best = Path(state["best_model_checkpoint"])
    assert metrics[int(best.name.split("-")[1])] == state["best_metric"] and best.is_dir()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-5", best.name}
