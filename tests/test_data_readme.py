"""Every example and number of data/README.md is correct: rows, recipes, code, commands and tables."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dart_train.config import read_recipe
from dart_train.data.formats import normalise
from dart_train.data.images import BadRowError, ImageStore
from dart_train.data.sources import open_source
from data.scenes.difficulty import LEVELS
from data.scenes.questions import KINDS
from data.scenes.writer import ShapesSettings, write
from data.shapes import blind_baselines, draw, scene

ROOT = Path(__file__).parents[1]
README = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [body for name, body in BLOCKS if name == language]


def rows() -> list[dict[str, Any]]:
    """The rows of the page, in its order."""
    lines = [line for body in blocks("jsonl") for line in body.splitlines()]
    return [json.loads(text) for text in [*blocks("json"), *lines]]


def test_every_block_has_a_language_that_is_tested() -> None:
    assert {name for name, _ in BLOCKS} == {"json", "jsonl", "yaml", "python", "bash"}


# Roles (first letters) and the number of images of each row of the page.
EXPECTED = [
    ("ua", 1), ("sua", 1), ("ua", 1), ("ua", 1), ("ua", 1), ("ua", 1), ("uata", 1), ("uaua", 1),
    ("uaua", 1), ("sua", 1), ("ua", 0), ("ua", 0), ("ua", 0), ("ua", 2), ("ua", 2), ("uaua", 1), ("ua", 0),
]  # fmt: skip


def test_rows_are_read_as_described() -> None:
    samples = [normalise(row) for row in rows()]
    found = [("".join(turn.role[0] for turn in one.turns), len(one.images)) for one in samples]
    assert found == EXPECTED
    assert all("<image>" not in text for one in samples for turn in one.turns for text in turn.texts)


def test_images_are_opened_and_the_url_is_refused(tmp_path: Path) -> None:
    for name in ("circle", "before", "after", "key", "lock", "page", "train/000000"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    store, refused = ImageStore(tmp_path), []
    for ref in (ref for row in rows() for ref in normalise(row).images):
        try:
            assert store.open(ref).size == (8, 8)
        except BadRowError as bad:
            refused.append((ref.url, bad.code))
    assert refused == [("https://example.com/circle.png", "url_refused")]


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_recipes_are_accepted(number: int) -> None:
    recipe = read_recipe("model: {path: some/model}\n" + blocks("yaml")[number])
    assert recipe.data.train


def test_columns_are_mapped_for_the_set_that_the_page_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("circle.png")
    Path("my_set").mkdir()
    exec(blocks("python")[0], {})
    for text in (blocks("yaml")[1], blocks("yaml")[3]):
        [spec] = read_recipe("model: {path: some/model}\n" + text).data.train
        opened = open_source(spec)
        [sample] = [opened.sample(row, index) for index, row in enumerate(opened.rows)]
        assert sample.turns[0].parts[-1] == "What colour is the circle?"
        assert opened.store.open(sample.images[0]).size == (8, 8)


def test_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[1]
    exec(code, {})
    printed = capsys.readouterr().out
    assert Image.open("scene.png").size == (96, 96)
    shown = re.search(r"print\(\" \"\.join\(symbols\(one\)\)\)  # (.+) \.\.\.$", code, re.MULTILINE)
    assert shown and shown[1] in printed
    assert all(line in printed for line in ("What is written on the red plate? SUN", "cross yellow"))


@pytest.mark.parametrize("line", [line for body in blocks("bash") for line in body.splitlines()])
def test_commands_run(line: str, tmp_path: Path) -> None:
    program, script, *arguments = shlex.split(line)
    assert program == "python"
    command = [sys.executable, str(ROOT / script), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = tmp_path / arguments[arguments.index("--out") + 1]
    summary = json.loads((written / "shapes.json").read_text())
    assert summary["splits"]["train"]["pictures"] == int(arguments[arguments.index("--train") + 1])


def test_first_row_of_the_page_is_a_drawn_row(tmp_path: Path) -> None:
    write(ShapesSettings(1, 0, 0), tmp_path / "set")
    drawn = {row["id"]: row for row in json.loads((tmp_path / "set" / "train.json").read_text())}
    first = rows()[0]
    kind = drawn[first["id"]].pop("kind")
    assert drawn[first["id"]] == first and first["id"].endswith(kind)


def table(heading: str) -> dict[str, list[str]]:
    """The first table under a heading, as {first column: other columns}."""
    part = README.split(f" {heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", part, re.MULTILINE)
    assert lines
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()[2:]]
    return {first.strip("`"): rest for first, *rest in cells}


def test_table_of_difficulties() -> None:
    def span(low: int, high: int) -> str:
        return str(low) if low == high else f"{low}-{high}"

    rows_of_table = table("The shapes set")
    assert list(rows_of_table) == list(LEVELS)
    for name, level in LEVELS.items():
        plates = (level.numbers[0] + level.words[0], level.numbers[1] + level.words[1])
        assert rows_of_table[name][:-1] == [
            f"{level.size} x {level.size}", f"{level.grid} x {level.grid}",
            str(level.colours), str(level.shapes),
            span(*level.shape_count), span(*plates), span(*level.digits), span(*level.letters),
            str(len(level.word_list)),
        ]  # fmt: skip


def test_every_kind_of_question_is_listed() -> None:
    assert list(table("Kinds of questions")) == list(KINDS)


@pytest.mark.parametrize(
    ("difficulty", "column"),
    [("tiny", 0), *(pytest.param(n, i, marks=pytest.mark.slow) for i, n in enumerate(LEVELS) if i)],
)
def test_table_of_blind_baselines(difficulty: str, column: int) -> None:
    table_values = {kind: scores[column] for kind, scores in table("Blind baselines").items()}
    measured = {e.kind: f"{100 * e.majority:.1f} / {100 * e.informed:.1f}" for e in blind_baselines(difficulty)}
    assert table_values == measured


def test_file_sizes_in_the_table(tmp_path: Path) -> None:
    for name, cells in table("The shapes set").items():
        files = [tmp_path / f"{name}-{index}.png" for index in range(60)]
        for index, file in enumerate(files):
            draw(scene(0, "train", index, name)).save(file)
        mean = sum(file.stat().st_size for file in files) / len(files)
        assert mean / 1000 == pytest.approx(float(cells[-1].split()[0]), rel=0.25)  # compressors differ
