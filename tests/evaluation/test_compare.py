"""A comparison records the answers of the models, and its tables follow from the answers."""

from __future__ import annotations

import csv
from math import sqrt
from pathlib import Path

import pytest
import torch

from dart_train import DART, attach
from dart_train.config import load_recipe
from dart_train.evaluation.answer_store import from_ranges, to_ranges
from dart_train.evaluation.comparison_grid import grid_cells, prepare
from dart_train.evaluation.generate import LoadedCheckpoint
from tests.evaluation import scene
from tests.evaluation.scene import NUMBER, lines


def table(folder: Path, name: str = "table.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_cell_answers_every_question_once(done: Path) -> None:
    found = [(line["checkpoint"], line["method"], line["budget"], line["id"]) for line in lines(done / "out")]
    rows = ["full full", "dart 8", "dart 0.25", "random 8", "random 0.25"]
    assert found == [("base", *row.split(), str(i)) for row in rows for i in range(NUMBER)]


def test_full_tokens_answer_like_plain_transformers(done: Path) -> None:
    full = [line["prediction"] or "(nothing)" for line in lines(done / "out") if line["method"] == "full"]
    assert full == scene.answers_of(load_recipe(done / "compare.yaml"))
    assert len(set(full)) > 3  # the model does not give one answer to everything


def test_batched_answers_equal_single_ones(done: Path) -> None:
    recipe = load_recipe(done / "compare.yaml")
    subject = LoadedCheckpoint(recipe, recipe.model.path, torch.device("cpu"))
    answers = []
    for question in prepare(recipe, progress=False).questions:
        with attach(subject.model, DART(keep=8, layer=2)):
            answers.append(scene.plainly(subject.model, subject.processor, question))
    here = [line for line in lines(done / "out") if (line["method"], line["budget"]) == ("dart", "8")]
    assert [line["prediction"] for line in here] == answers


def test_kept_tokens_are_recorded(done: Path) -> None:
    for line in lines(done / "out"):
        shown = 0 if line["id"] == "3" else 64
        expected = {"full": shown, "8": min(8, shown), "0.25": shown // 4}[line["budget"]]
        assert (line["visual_tokens"], line["kept"]) == (shown, expected)
        if line["kept_tokens"] is not None:
            kept = from_ranges(line["kept_tokens"])
            assert len(set(kept)) == expected and all(0 <= token < 64 for token in kept)


def test_table_csv_follows_from_results_jsonl(done: Path) -> None:
    rows = table(done / "out")
    assert {row["kind"] for row in rows} == {"all", *scene.KINDS}
    for row in rows:
        mine = [
            line
            for line in lines(done / "out")
            if all(line[name] == row[name] for name in ("checkpoint", "method", "budget", "set"))
            and row["kind"] in ("all", line["kind"])
        ]
        marks = [line["prediction"].lower() in [answer.lower() for answer in line["answers"]] for line in mine]
        n, p, z = len(marks), sum(marks) / len(marks), 1.959964
        middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))
        written = [float(row[name]) for name in ("n", "value", "low", "high")]
        assert written == pytest.approx([n, p, low, high], abs=1e-5)
        kept = sum(line["kept"] for line in mine) / sum(line["visual_tokens"] for line in mine)
        assert row["kind"] != "all" or float(row["kept_share"]) == pytest.approx(kept, abs=1e-5)


def test_from_full_is_the_difference_to_full_tokens(done: Path) -> None:
    rows = {(row["method"], row["budget"], row["kind"]): row for row in table(done / "out")}
    full = float(rows["full", "full", "all"]["value"])
    assert full == pytest.approx(12 / 14, abs=1e-5) and rows["full", "full", "all"]["p"] == ""
    for (method, _, kind), row in rows.items():
        if method != "full" and kind == "all":
            assert float(row["from_full"]) == pytest.approx(float(row["value"]) - full, abs=2e-6)
            assert float(row["from_full_low"]) <= float(row["from_full"]) <= float(row["from_full_high"])
            assert 0 < float(row["p"]) <= 1 and row["test"] == "McNemar, exact"


def test_pairs_csv_compares_methods_at_the_same_budget(done: Path) -> None:
    found = table(done / "out", "pairs.csv")
    places = [(row["first_method"], row["second_method"], row["first_budget"]) for row in found]
    assert places == [("dart", "random", "8"), ("dart", "random", "0.25")]
    assert all(int(row["n"]) == NUMBER and float(row["p"]) <= float(row["p_holm"]) for row in found)
    answers = {(line["method"], line["budget"], line["id"]): line for line in lines(done / "out")}
    for row in found:
        marks = [
            [answers[method, row["first_budget"], str(i)]["prediction"].lower() for i in range(NUMBER)]
            for method in ("dart", "random")
        ]
        correct = [answers["full", "full", str(i)]["answers"][0].lower() for i in range(NUMBER)]
        one, other = ([one == answer for one, answer in zip(each, correct, strict=True)] for each in marks)
        assert int(row["gained"]) == sum(b and not a for a, b in zip(one, other, strict=True))


def test_table_md_has_the_scores_of_table_csv(done: Path) -> None:
    markdown = (done / "out" / "table.md").read_text()
    assert "| base | full | full | 100.0% | 14 | 85.7 (60.1-96.0) |" in markdown
    assert "exact_match by kind of question" in markdown and "colour (7)" in markdown
    for row in table(done / "out"):
        value, low, high = (100 * float(row[name]) for name in ("value", "low", "high"))
        assert f"{value:.1f} ({low:.1f}-{high:.1f})" in markdown, "of kinds, too"


def test_grid_has_full_tokens_and_keep_all_once_a_checkpoint(done: Path) -> None:
    recipe = load_recipe(
        done / "compare.yaml",
        ["compare.checkpoints={a: x, b: y}", "compare.methods=[keep_all, dart, {method: dart, layer: 1}]"],
    )
    names = [cell.name for cell in grid_cells(recipe) if cell.checkpoint == "a"]
    assert names == ["a / full", "a / keep_all / full", "a / dart / 8", "a / dart / 0.25",
                     "a / dart (layer=1) / 8", "a / dart (layer=1) / 0.25"]  # fmt: skip
    assert len(grid_cells(recipe)) == 12


def test_method_given_by_name_takes_the_options_of_the_recipe(done: Path) -> None:
    recipe = load_recipe(done / "compare.yaml", ["reduction={method: dart, keep: 9, layer: 3, image_pivots: 2}"])
    reducers = {cell.method: cell.reducer for cell in grid_cells(recipe)}
    assert (reducers["dart"].layer, reducers["dart"].image_pivots, reducers["random"].layer) == (3, 2, 3)
    assert reducers["dart"].keep == 0.25


@pytest.mark.parametrize("given", [[], [0], [0, 1, 2, 7], [3, 5], list(range(40))])
def test_kept_tokens_round_trip_as_ranges(given: list[int]) -> None:
    assert from_ranges(to_ranges(given)) == given
