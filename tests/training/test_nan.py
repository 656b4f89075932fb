"""A NaN or Inf loss or gradient: no rank applies the step, and its row ids are recorded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dart_train import train
from dart_train.cli.options import BAD_STEP
from dart_train.cli.training import train as main
from dart_train.common.distributed import RankInfo
from dart_train.config import load_recipe
from dart_train.training import nonfinite
from dart_train.training.nonfinite import NonFiniteStepError
from dart_train.training.trainer import DartTrainer
from tests.fixtures.faults import poison
from tests.fixtures.run_scene import losses, make_recipe

BASE = ["train.per_device_batch_size=2", "train.max_steps=4", "train.save_steps=1", "train.save_total_limit=null"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def poison_step(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes every trainer produce NaN or Inf in one step."""

    def poison_in_step(step: int, what: str) -> None:
        made = DartTrainer.__init__

        def poisoned(self: Any, *given: Any, **named: Any) -> None:
            made(self, *given, **named)
            poison(self, 0, step, what)

        monkeypatch.setattr(DartTrainer, "__init__", poisoned)

    return poison_in_step


def adapter(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoint-{step}" / "adapter_model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("what", ["nan", "inf", "gradient"])
def test_nan_and_inf_steps_are_skipped(recipe: Path, tmp_path: Path, poison_step: Any, what: str) -> None:
    poison_step(2, what)
    train(recipe, [*BASE, f"train.output_dir={tmp_path}", "train.on_nan=skip", "train.gradient_accumulation_steps=2"])
    lines = losses(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["bad_steps"] for line in lines] == [0, 1, 1, 1]
    rates = [line["lr_language"] for line in lines]
    assert rates[0] > rates[1] == rates[2] > rates[3]  # the schedule waits for a step that was not taken
    assert all(math.isfinite(line["loss"]) for line in lines) and "grad_norm" not in lines[1]
    assert same(adapter(tmp_path, 1), adapter(tmp_path, 2)) and not same(adapter(tmp_path, 2), adapter(tmp_path, 3))
    lines_of_file = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert [(line["step"], line["rank"], len(line["losses"])) for line in lines_of_file] == [(2, 0, 2)]
    assert len(lines_of_file[0]["rows"]) == 4 and all(
        name.startswith("rows.json:") for name in lines_of_file[0]["rows"]
    )
    assert (lines_of_file[0]["losses"][1] == what) == (what != "gradient")


def test_row_ids_are_those_of_the_step(recipe: Path) -> None:
    from dart_train.data.dataset import RowDataset
    from dart_train.training.data_feed import TrainFeed
    from tests.zoo import FAMILIES

    read = load_recipe(recipe, ["train.per_device_batch_size=2", "train.gradient_accumulation_steps=2"])
    for rank in (0, 1):
        feed = TrainFeed.open(read, RankInfo(rank, 2, 2, False), FAMILIES["llava"].processor())
        rows, batches = RowDataset(feed.reader), iter(feed.loader(0).batch_sampler or ())
        for step, micro in ((0, 0), (0, 1), (1, 0)):
            named = feed.row_ids(step, micro)
            places = [rows.locate(number) for number in next(batches)]
            assert [name.split(" ")[0] for name in named] == [source.row_id(index) for source, index in places]


def test_nan_step_ends_the_run_if_on_nan_is_stop(recipe: Path, tmp_path: Path, poison_step: Any) -> None:
    poison_step(3, "nan")
    with pytest.raises(NonFiniteStepError, match=r"loss is nan at step 3, rank 0 \(rows rows.json:\d+"):
        train(recipe, [*BASE, f"train.output_dir={tmp_path}"])
    assert not (tmp_path / "checkpoint-3").exists() and (tmp_path / "checkpoint-2").exists()


def test_disk_full_while_recording_a_nan_step(
    recipe: Path, tmp_path: Path, poison_step: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk on the first rank must not end it alone: the others would wait for it."""

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    poison_step(2, "nan")
    monkeypatch.setattr(nonfinite, "append_jsonl", full)
    train(recipe, [*BASE, f"train.output_dir={tmp_path}", "train.on_nan=skip"])
    assert losses(tmp_path)[-1]["bad_steps"] == 1
    assert "No space left on device" in caplog.text and "rows.json:" in caplog.text


def test_nan_count_continues_on_resume(
    recipe: Path, tmp_path: Path, poison_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = [*BASE, f"train.output_dir={tmp_path}", "train.on_nan=skip"]
    with monkeypatch.context():
        poison_step(2, "nan")
        train(recipe, [*go, "train.max_steps=3"])
    monkeypatch.undo()
    train(recipe, go)
    assert losses(tmp_path)[-1]["bad_steps"] == 1
    assert len((tmp_path / "bad_steps.jsonl").read_text().splitlines()) == 1


def test_nan_steps_in_a_row_end_the_run(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that became Inf stay so: no later step can be taken."""
    wild = ["train.learning_rate=1e30", "train.max_grad_norm=0", "train.on_nan=skip", "train.max_steps=40"]
    wild += ["parts.language={mode: full}", "train.save_steps=100"]
    assert main([str(recipe), *BASE, f"train.output_dir={tmp_path}", *wild]) == BAD_STEP
    assert "for 20 steps in a row" in capsys.readouterr().err


def guard(recipe: Path, folder: Path, *overrides: str) -> nonfinite.NonFiniteGuard:
    """Of a process whose every step has one row."""
    feed: Any = SimpleNamespace(ranks=RankInfo(0, 1, 1, False), row_ids=lambda step, micro: ["row"])
    return nonfinite.NonFiniteGuard(load_recipe(recipe, list(overrides)), feed, folder)


def test_nan_steps_that_are_not_in_a_row_do_not_end_the_run(recipe: Path, tmp_path: Path) -> None:
    skipping = guard(recipe, tmp_path, "train.on_nan=skip")
    for step in range(1, 60, 2):
        skipping.record_loss(torch.tensor(math.nan))
        assert skipping.saw_nonfinite()
        skipping.end_step(step, nonfinite=True)
        skipping.record_loss(torch.tensor(1.0))
        assert not skipping.saw_nonfinite()
        skipping.end_step(step + 1, nonfinite=False)
    assert skipping.count == 30


def test_step_skipped_by_the_loss_scaler_is_not_nonfinite_in_fp16(recipe: Path, tmp_path: Path) -> None:
    for precision, expected in (("fp16", False), ("fp32", True)):
        checked = guard(recipe, tmp_path, f"train.precision={precision}")
        checked.step_was_taken = False
        assert checked.saw_nonfinite() is expected
