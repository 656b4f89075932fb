"""What a person sees: trackers are read back from the disk, and the line on the screen."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dart_train import train
from dart_train.common.distributed import RankInfo
from dart_train.common.trackers import wandb_mode
from dart_train.config import load_recipe
from dart_train.training import header
from dart_train.training.callbacks import MetricsFile, progress_line, read_metrics
from dart_train.training.predictions import PREDICTED_ROWS
from dart_train.training.run import build, prepare
from tests.fixtures.run_scene import losses, make_recipe


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a `.wandb` file: a log in blocks of 32 KiB, a header of 7 bytes before each piece (checksum,
    length, and whether it is complete, first, middle or last) and before the file."""
    at, record = 7, b""
    while at + 7 <= len(content):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def wandb_history(run: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """Every record of the offline runs in the folder: history rows, and the run headers."""
    from wandb.proto import wandb_internal_pb2

    rows, headers = [], []
    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
            if record.WhichOneof("record_type") == "run":
                headers.append(record.run)
    return rows, headers


def settled_history(run: Path, seconds: float = 60.0) -> tuple[list[dict[str, Any]], list[Any]]:
    """W&B's own process writes the file; on a busy machine its last rows come a moment after the run."""
    end = time.monotonic() + seconds
    while not (found := wandb_history(run))[0] and time.monotonic() < end:
        time.sleep(0.5)
    return found


def test_wandb_and_tensorboard_receive_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("A_SECRET_OF_MINE", "not-to-be-found")
    recipe, run = make_recipe(tmp_path), tmp_path / "run"
    more = ["log={report_to: [wandb, tensorboard], name: mine, group: ours, tags: [a, b]}", "train.save_steps=2"]
    more += ["train.per_device_batch_size=2", "train.max_steps=4"]
    train(recipe, more)
    rows, headers = settled_history(run)
    expected = {row["train/global_step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert expected == {row["step"]: row["loss"] for row in losses(run)}
    for name in ("train/grad_norm", "train/lr_language", "train/keep", "train/visual_before", "train/visual_after",
                 "train/tokens_per_second", "train/step_seconds", "train/data_wait_seconds"):  # fmt: skip
        assert name in rows[0], name
    assert "train/learning_rate" not in rows[0], "parts have their own: lr_vision, lr_projector, lr_language"
    assert headers[0].display_name == "mine" and headers[0].run_group == "ours" and list(headers[0].tags) == ["a", "b"]
    assert _scalars(run, "train/loss") == pytest.approx(expected, rel=1e-6)
    for file in run.rglob("*"):
        assert not (file.is_file() and b"not-to-be-found" in file.read_bytes()), file


def _scalars(run: Path, name: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_wandb_run_id_is_kept_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe, run = make_recipe(tmp_path), tmp_path / "run"
    more = ["log.report_to=[wandb]", "train.per_device_batch_size=2", "train.save_steps=2"]
    train(recipe, [*more, "train.max_steps=2"])
    train(recipe, [*more, "train.max_steps=4"])
    _, headers = wandb_history(run)
    assert len({header.run_id for header in headers}) == 1
    assert len(list(run.glob("wandb/offline-run-*"))) == 2


def test_trackers_show_repeated_steps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was lost after step 8 continues from its checkpoint of step 4: steps 5 to 8 are trained again."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe, run = make_recipe(tmp_path), tmp_path / "run"
    rows = json.dumps([{"path": str(tmp_path / "rows.json"), "images": str(tmp_path / "images"), "limit": 20}])
    more = ["log.report_to=[wandb, tensorboard]", "train.per_device_batch_size=2", "train.save_steps=4",
            f"data.validation={rows}", "train.eval_budgets=[1.0]", "train.overlay_steps=4"]  # fmt: skip
    train(recipe, [*more, "train.max_steps=8"])
    settled_history(run)
    shutil.rmtree(run / "checkpoint-8")
    train(recipe, [*more, "train.max_steps=8", "train.epochs=2"])
    assert [line["step"] for line in losses(run)] == list(range(1, 9))
    train(recipe, [*more, "train.max_steps=10"])
    deadline = time.monotonic() + 60
    while True:
        history, headers = wandb_history(run)
        steps = [row["train/global_step"] for row in history if "train/loss" in row]
        if len(steps) >= 10 or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert steps == list(range(1, 11)) and len({header.run_id for header in headers}) == 1
    for name, expected in (("eval/loss", [4, 8, 10]), ("validation/predictions", [4, 8, 10]), ("overlays/0", [4, 8])):
        found = [row["train/global_step"] for row in history if any(key.startswith(name) for key in row)]
        assert found == expected, name
    assert sorted(_scalars(run, "train/loss")) == steps
    predictions_are_those_of_the_rows(run, json.loads((tmp_path / "rows.json").read_text()))
    captions_name_method_budget_and_question(history)
    config = {item.key: json.loads(item.value_json) for item in headers[0].config.update}
    facts = config["run"]
    assert (facts["world_size"], facts["effective_batch_size"], facts["steps"]) == (1, 2, 8)
    assert facts["trained_parameters"] == sum(facts["trained_parameters_by_part"].values()) < facts["parameters"]


def predictions_are_those_of_the_rows(run: Path, rows: list[dict[str, Any]]) -> None:
    (file, *_) = sorted(run.glob("wandb/offline-run-*/files/media/table/validation/*.json"))
    table = json.loads(file.read_text())
    names = ["row", "question", "target", "right", "image"]
    assert set(names) < set(table["columns"]) and len(table["data"]) == PREDICTED_ROWS
    row, question, target, right, image = (table["columns"].index(name) for name in names)
    (answer,) = set(range(len(table["columns"]))) - {row, question, target, right, image}
    for number, entries in enumerate(table["data"]):
        turns = [turn["value"].replace("<image>\n", "") for turn in rows[number]["conversations"]]
        assert [entries[question], entries[target]] == turns
        assert entries[right] == (entries[answer] == entries[target])
        assert (entries[image] is not None) == ("image" in rows[number])


def captions_name_method_budget_and_question(history: list[dict[str, Any]]) -> None:
    captions = [text for row in history for key, text in row.items() if key.startswith("overlays/0.caption")]
    assert len(captions) == 2
    for text in captions:
        assert text.startswith("dart, 16 of 64 visual tokens kept: ") and len(text.split(": ")[1].split()) > 2, text


def test_wandb_mode_without_a_key_is_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wandb_mode("auto") == "offline"
    assert wandb_mode("disabled") == "disabled"
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode("auto") == "offline"


def test_metrics_after_the_checkpoint_are_removed_on_resume(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    MetricsFile(tmp_path, start_step=2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_only_the_first_rank_writes_the_files(tmp_path: Path) -> None:
    """Two ranks that rewrite one file at the same time lose lines."""
    recipe, run = make_recipe(tmp_path), tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    before = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in run.iterdir()}
    read = load_recipe(recipe, ["train.zero_stage=0", "log.report_to=[wandb, tensorboard]"])
    build(prepare(read, RankInfo(1, 2, 2, torchrun=True)))
    assert {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in run.iterdir()} == before


def test_progress_line() -> None:
    logs = {"loss": 1.25, "tokens_per_second": 12345.6, "visual_before": 5760.0, "visual_after": 640.0,
            "peak_memory_gib": 3.14}  # fmt: skip
    line = progress_line(40, 500, logs, timedelta(seconds=754))
    assert line == "step 40/500  loss 1.2500  12,346 tokens/s  visual 5,760 -> 640  0:12:34 left  3.1 GiB"
    more = {"lr_vision": 1e-5, "lr_language": 1e-5, "grad_norm": 2.3456, "skipped_rows": 3.0}
    line = progress_line(40, 500, {**logs, **more}, timedelta(seconds=754))
    assert "  lr 1.0e-05  gradient 2.35  " in line and "  3 rows skipped  " in line
    line = progress_line(40, 500, {**logs, **more, "lr_language": 2e-4}, timedelta(seconds=754))
    assert "  lr vision 1.0e-05, language 2.0e-04  " in line


@pytest.mark.parametrize("fast", [True, False])
def test_header_reports_emulated_bf16(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "bf16_is_emulated", lambda: not fast)
    assert ("fp32 is faster" in header.precision_text("bf16")) == (not fast)
    assert header.precision_text("fp32") == "fp32"


def test_header_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = make_recipe(tmp_path), tmp_path / "run"
    more = ["train.max_steps=2", "train.per_device_batch_size=2", "train.gradient_accumulation_steps=3"]
    train(recipe, more)
    assert (message := capsys.readouterr().err).count("new run") == 1
    for part in (
        f"{run} (new run)", "language lora ", "24 an epoch", "2 steps, 0.5 epochs",
        "6 rows a step = 2 x 1 processes x 3 forwards, fp32, without DeepSpeed",
        "dart from layer 2, keep 0.25 (elastic schedule, budgets 1, 0.5, ",
    ):  # fmt: skip
        assert part in message, part
    train(recipe, [*more, "train.max_steps=3", "train.save_steps=1"])
    assert f"{run} (resumed from checkpoint-2, after step 2)" in capsys.readouterr().err
