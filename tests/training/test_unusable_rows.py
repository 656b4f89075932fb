"""Rows that cannot be used: foreseen before the first step, recorded, and the reason if they end a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dart_train import train
from dart_train.checkpoints import latest_complete
from dart_train.cli.training import plan
from dart_train.cli.training import train as main
from dart_train.common.io import read_jsonl
from dart_train.data.check_report import DroppedRows
from dart_train.data.issues import RowIssue
from dart_train.training import data_feed
from dart_train.training.callbacks import read_metrics
from dart_train.training.row_guard import SKIPPED_ROWS_FILE
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import losses, make_recipe

SHORT = ["train.per_device_batch_size=2", "train.max_steps=8", "train.save_steps=100"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("scene"))


def rows_without(recipe: Path, folder: Path, numbers: set[int]) -> str:
    """data.train with empty conversations in these rows."""
    rows = json.loads((recipe.parent / "rows.json").read_text())
    for number in numbers:
        rows[number]["conversations"] = []
    (folder / "rows.json").write_text(json.dumps(rows))
    return f"data.train={json.dumps([{'path': str(folder / 'rows.json'), 'images': str(recipe.parent / 'images')}])}"


def refused(capsys: pytest.CaptureFixture[str], *call: str, command: Any = main) -> str:
    assert command(list(call)) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def not_surveyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the sample before the first step has missed the rows; for runs that are not grouped by length."""
    monkeypatch.setattr(data_feed, "sample_dropped_rows", lambda *args: DroppedRows())


TOO_LONG = "24 of 24 rows cannot be used (too_long: 24), more than data.max_bad_fraction 0.01"


@pytest.mark.parametrize("grouping", ["true", "false"])
@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_max_length_below_every_row_is_refused_before_step_1(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], grouping: str, option: list[str]
) -> None:
    more = ["data.max_length=4", f"data.group_by_length={grouping}", f"train.output_dir={tmp_path / 'run'}"]
    message = refused(capsys, str(recipe), *SHORT, *more, *option)
    assert TOO_LONG in message and "raise data.max_length" in message
    assert not (tmp_path / "run").exists()


def test_plan_refuses_max_length_below_every_row(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert TOO_LONG in refused(capsys, str(recipe), "data.max_length=4", "--no-timing", command=plan)


@pytest.mark.parametrize("key", ["data.train", "data.validation"])
def test_wrong_image_folder_is_refused_before_step_1(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    source = json.dumps([{"path": str(recipe.parent / "rows.json"), "images": str(tmp_path)}])
    message = refused(capsys, str(recipe), *SHORT, f"{key}={source}")
    assert f"{key}: 15 of 24 rows cannot be used" in message
    assert "missing_image: 15" in message and "0-0.png" in message


@pytest.mark.parametrize(("bad", "refused"), [(8, False), (9, True)])
def test_a_sample_is_refused_only_beyond_chance(bad: int, refused: bool) -> None:
    found = DroppedRows(sampled=True)
    for number in range(300):
        found.add(str(number), RowIssue("too_long", "long") if number < bad else None)
    if refused:
        with pytest.raises(ValueError, match=rf"{bad} of 300 sampled rows cannot be used"):
            found.check(0.01)
    else:
        found.check(0.01)
        with pytest.raises(ValueError, match=r"more than data\.max_bad_fraction 0"):
            found.check(0.0)


def test_steps_without_supervised_tokens_end_the_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    more = ["data.max_length=5", "data.max_bad_fraction=1.0", f"train.output_dir={run}", "data.group_by_length=false"]
    message = refused(capsys, str(recipe), *SHORT, *more)
    assert "steps 1 to 3 have nothing to train on: 6 of 6 rows were dropped" in message
    assert "longer than data.max_length 5" in message and "data.max_pixels" in message
    assert len(read_metrics(run)) == 2 and not list(run.glob("checkpoint-*"))


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_rows_are_one_message_and_what_was_trained_is_saved(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    not_surveyed(monkeypatch)
    run, data = tmp_path / "run", rows_without(recipe, tmp_path, {2, 3, 5, 7, 11, 13, 17, 19, 21})
    more = [
        data,
        "data.group_by_length=false",
        f"data.workers={workers}",
        "data.max_bad_fraction=0.01",
        f"train.output_dir={run}",
    ]
    message = refused(capsys, str(recipe), *SHORT, *more)
    assert "rows are bad: more than max_bad_fraction 0.01" in message and "DataLoader worker" not in message
    done = len(losses(run))
    assert done > 0 and latest_complete(run)[0] == run / f"checkpoint-{done}"
    assert f"Trained so far: {run / f'checkpoint-{done}'}" in message
    assert len(read_jsonl(run / SKIPPED_ROWS_FILE)) == 2


def test_run_resumes_after_too_many_bad_rows_as_if_uninterrupted(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    not_surveyed(monkeypatch)
    data = rows_without(recipe, tmp_path, {2, 3, 5, 7, 11, 13, 17, 19, 21})
    start = [str(recipe), *SHORT, data, "data.group_by_length=false"]
    assert main([*start, "data.max_bad_fraction=1.0", f"train.output_dir={tmp_path / 'all'}"]) == 0
    assert main([*start, "data.max_bad_fraction=0.01", f"train.output_dir={tmp_path / 'run'}"]) == 2
    assert main([*start, "data.max_bad_fraction=1.0", f"train.output_dir={tmp_path / 'run'}"]) == 0
    assert [line["loss"] for line in losses(tmp_path / "run")] == [line["loss"] for line in losses(tmp_path / "all")]
    records = [read_jsonl(tmp_path / name / SKIPPED_ROWS_FILE) for name in ("run", "all")]
    assert records[0] == records[1] and records[0]


GROUPINGS = ["data.group_by_length=true", "data.group_by_length=false"]
ONE_BAD = ["data.max_bad_fraction=0.1"]


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_skipped_rows_are_recorded_with_source_id_code_and_message(recipe: Path, tmp_path: Path, grouping: str) -> None:
    run, data = tmp_path / "run", rows_without(recipe, tmp_path, {2})
    train(recipe, [*SHORT, data, *ONE_BAD, grouping, f"train.output_dir={run}", "train.max_steps=12"])
    (line,) = read_jsonl(run / SKIPPED_ROWS_FILE)
    assert (line["step"] == 0) == (grouping == "data.group_by_length=true")  # left out before the first step
    assert set(line) == {"step", "id", "code", "source", "message"}
    assert line["code"] == "empty_conversation" and line["id"].endswith("2)") and "rows.json" in line["source"]


def test_grouped_run_refuses_what_ends_a_run_before_step_1(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    begin = [str(recipe), *SHORT, "data.group_by_length=true", f"train.output_dir={run}"]
    message = refused(capsys, *begin, rows_without(recipe, tmp_path, {2}), *ONE_BAD, "data.on_bad_row=error")
    assert "empty_conversation" in message and "on_bad_row: skip would leave it out" in message
    message = refused(capsys, *begin, "data.max_length=30", "data.max_bad_fraction=1.0", "data.on_too_long=error")
    assert "data.train: row rows.json:" in message and "30" in message
    message = refused(capsys, *begin, "data.max_length=4", "data.max_bad_fraction=1.0")
    assert "none of the 24 rows can be used; the first one is" in message
    assert not run.exists()


def test_rows_left_out_stay_left_out_on_resume_and_without_grouping(recipe: Path, tmp_path: Path) -> None:
    """A run that was not surveyed continues without a survey, although there is one by then. A new run uses it."""
    data = rows_without(recipe, tmp_path, {2, 7, 11})
    begin = [*SHORT, data, "data.max_bad_fraction=0.2", "data.group_by_length=false", "train.save_steps=4"]

    def go(name: str, steps: int) -> tuple[list[float], dict[str, Any]]:
        run = tmp_path / name
        train(recipe, [*begin, f"train.output_dir={run}", f"train.max_steps={steps}", "train.lr_scheduler=constant"])
        return [line["loss"] for line in losses(run)], json.loads((run / "rows.json").read_text())

    whole, record = go("whole", 8)
    assert not record["surveyed"] and not record["left_out"]
    go("first", 4)
    survey = ["data.group_by_length=null", f"train.output_dir={tmp_path}/grouped", "data.max_bad_fraction=0.2"]
    train(recipe, [*SHORT, data, *survey])
    assert go("first", 8) == (whole, record)
    surveyed, record = go("surveyed", 8)
    assert record["surveyed"] and record["left_out"] == 3 and surveyed != whole
    left_out = [line["id"] for line in read_jsonl(tmp_path / "surveyed" / SKIPPED_ROWS_FILE)]
    assert len(left_out) == 3 and all(
        line["step"] == 0 for line in read_jsonl(tmp_path / "surveyed/skipped_rows.jsonl")
    )
    shutil.rmtree(tmp_path / "surveyed" / "checkpoint-8")
    assert go("surveyed", 8) == (surveyed, record)
    assert [line["id"] for line in read_jsonl(tmp_path / "surveyed" / SKIPPED_ROWS_FILE)] == left_out


def test_resume_with_other_usable_rows_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here a row was corrected after the checkpoint, which changes the order of all."""
    begin = [str(recipe), *SHORT, "data.max_bad_fraction=0.2", f"train.output_dir={tmp_path / 'run'}"]
    begin += ["data.group_by_length=null"]
    assert main([*begin, rows_without(recipe, tmp_path, {2})]) == 0
    message = refused(capsys, *begin, rows_without(recipe, tmp_path, set()), "train.max_steps=10")
    assert "which of them can be used are not those of" in message and "left_out 1 then, 0 now" in message
    assert main([*begin, rows_without(recipe, tmp_path, set()), "train.max_steps=10", "--force"]) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_on_bad_row_error_is_one_message(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    data = rows_without(recipe, tmp_path, {2})
    more = [data, "data.on_bad_row=error", *ONE_BAD, f"data.workers={workers}", "data.group_by_length=false"]
    message = refused(capsys, str(recipe), *SHORT, *more, "train.max_steps=12", f"train.output_dir={tmp_path / 'run'}")
    assert "empty_conversation" in message and "on_bad_row: skip would leave it out" in message
    assert "DataLoader worker" not in message


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    run, data = folder / "run", rows_without(recipe, folder, {2})
    more = [data, "data.on_bad_row=error", *ONE_BAD, "data.group_by_length=false", "data.workers=1"]
    more += ["train.per_device_batch_size=1", "train.max_steps=12", "train.save_steps=100", f"train.output_dir={run}"]
    return [{"recipe": str(recipe), "overrides": more, "command": str(run)}]


@pytest.mark.deepspeed
def test_on_bad_row_error_on_one_of_two_ranks_ends_both_at_the_same_step(rank_runs: RankRuns) -> None:
    run = rank_runs.folder / "run"
    codes, output = rank_runs.command("run")
    assert codes == [2, 2] and "Traceback" not in output, output[-3000:]
    assert output.count("on_bad_row: skip would leave it out") == 1
    step = losses(run)[-1]["step"]
    assert latest_complete(run)[0] == run / f"checkpoint-{step}"
    assert [line["step"] for line in read_jsonl(run / SKIPPED_ROWS_FILE)] == [step + 1]
