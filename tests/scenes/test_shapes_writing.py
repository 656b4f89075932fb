"""The drawn set on disk: rows in LLaVA's format, the same for any number of workers; a finished set is not changed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import pytest

from data import shapes
from data.scenes.writer import ShapesSettings, write

ROOT = Path(__file__).parents[2]


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_set_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    wanted = ShapesSettings(train=40, validation=5, test=5, seed=3)
    write(wanted, tmp_path / "one", workers=1)
    write(wanted, tmp_path / "two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len(files(tmp_path / "one")) == 50 + 3 + 1


def test_rows_are_llava_rows_and_grouping_keeps_the_questions(tmp_path: Path) -> None:
    write(ShapesSettings(6, 2, 2), tmp_path / "single")
    write(ShapesSettings(6, 2, 2, group=True), tmp_path / "grouped")
    single, grouped = (json.loads((tmp_path / n / "train.json").read_text()) for n in ("single", "grouped"))
    assert len({row["id"] for row in single}) == len(single)
    assert [row["id"] for row in grouped] == [f"train-{index:06d}" for index in range(6)]
    pairs: dict[str, list[tuple[str, str, str]]] = {}
    for row in single:
        human, gpt = row["conversations"]
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        question = human["value"].removeprefix("<image>\n")
        assert question != human["value"] and "<image>" not in question
        pairs.setdefault(row["image"], []).append((row["kind"], question, gpt["value"]))
    for row in grouped:
        values = [turn["value"] for turn in row["conversations"]]
        assert values[0].startswith("<image>\n") and sum("<image>" in value for value in values) == 1
        values[0] = values[0].removeprefix("<image>\n")
        triples = list(zip(row["kind"], values[::2], values[1::2], strict=True))
        assert triples == pairs[row["image"]]
        assert (tmp_path / "grouped" / "images" / row["image"]).is_file()


@pytest.mark.parametrize("group", [False, True])
def test_parquet_loads_as_images(tmp_path: Path, group: bool) -> None:
    write(ShapesSettings(3, 1, 1, format="parquet", group=group, difficulty="small"), tmp_path / "set")
    loaded = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train", "validation", "test"]
    row = loaded["test"][0]
    scene = shapes.scene(0, "test", 0, "small")
    assert row["image"].tobytes() == shapes.draw(scene).tobytes()
    kinds = [one.kind for one in shapes.questions(scene)]
    assert row["kind"] == (kinds if group else kinds[0])
    assert row["conversations"][1] == {"from": "gpt", "value": shapes.questions(scene)[0].answer}


def test_summary_counts_what_was_written(tmp_path: Path) -> None:
    summary = write(ShapesSettings(5, 0, 4, kinds=("count", "word")), tmp_path / "set")
    rows = json.loads((tmp_path / "set" / "train.json").read_text())
    assert summary == json.loads((tmp_path / "set" / "shapes.json").read_text())
    assert summary["splits"]["train"]["questions"] == dict(Counter(row["kind"] for row in rows))
    assert not (tmp_path / "set" / "validation.json").exists()


def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "data" / "shapes.py"), *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


def test_command_runs_in_any_folder_and_does_not_change_a_finished_set(tmp_path: Path) -> None:
    arguments = ("--out", tmp_path / "set", "--train", "20", "--workers", "2")
    first = command(*arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "train: 20 images" in first.stdout and "20/20" in first.stderr
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "set").rglob("*")}
    assert command(*arguments, cwd=tmp_path).returncode == 0
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "set").rglob("*")}
    other = command(*arguments, "--seed", "1", cwd=tmp_path)
    assert other.returncode == 2 and "choose a new folder" in other.stderr


def test_all_errors_in_settings_are_reported_together() -> None:
    with pytest.raises(ValueError) as error:
        ShapesSettings(-1, 0, 0, difficulty="silly", format="bmp", kinds=("count", "smell"))
    assert all(word in str(error.value) for word in ("train = -1", "silly", "bmp", "smell"))
