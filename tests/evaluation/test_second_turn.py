"""The second question about an image: after a prefill of its own, and from the first question's cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dart_train.config import load_recipe
from dart_train.evaluation.comparison_grid import prepare
from dart_train.evaluation.questions import Question
from dart_train.evaluation.second_turn import first_turn, second_turns
from tests.evaluation import scene
from tests.zoo import make_image, save_folder, sentence

RECIPE = """
model: {{path: {folder}/{name}, dtype: float32}}
compare:
  methods: [fastv, {{method: dart, text_pivots: 0, name: unguided}}]
  budgets: [0.125]
  sets: [{{path: {folder}/questions.json, images: {folder}/images, name: small, second_turn: [anew, cached]}}]
  batch_size: 4
  max_new_tokens: 3
  timing: false
  output_dir: {folder}/out
"""


def write_rows(folder: Path, images: int, questions: int) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for image in range(images):
        make_image(image).save(folder / "images" / f"{image}.png")
        for number in range(questions):
            text = sentence(3 + number, 10 * image + number)
            turns = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": sentence(1, number)}]
            rows.append({"id": f"{image}-{number}", "image": f"{image}.png", "conversations": turns})
    (folder / "questions.json").write_text(json.dumps(rows))


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Question]]:
    """The answers of a comparison with second turns, and its questions."""
    folder = tmp_path_factory.mktemp("second")
    save_folder(request.param, folder / request.param)
    write_rows(folder, images=4, questions=3)
    (folder / "compare.yaml").write_text(RECIPE.format(folder=folder, name=request.param))
    recipe = load_recipe(folder / "compare.yaml")
    scene.compare_without_report(recipe)
    return scene.lines(folder / "out"), prepare(recipe, progress=False).questions


def cell(lines: list[Any], of_set: str, method: str) -> dict[str, Any]:
    return {line["id"]: line for line in lines if (line["set"], line["method"]) == (of_set, method)}


def test_every_question_is_asked_after_another_one_about_its_image(found: tuple[list[Any], list[Question]]) -> None:
    lines, questions = found
    for mode in ("anew", "cached"):
        here = cell(lines, f"small, second turn {mode}", "full")
        assert len(here) == 12
        for name in here:
            second, first = name.split(" after ")
            assert second != first and second.split("-")[0] == first.split("-")[0]
    added = [question for question in questions if "second turn" in question.set]
    assert [question.prefilled for question in added] == [0] * 12 + [1] * 12
    assert all([turn.role for turn in question.turns] == ["user", "assistant", "user"] for question in added)
    assert all(len(first_turn(question).turns) == 1 for question in added if question.prefilled)


@pytest.mark.parametrize("method", ["full", "unguided"])
def test_both_cells_are_equal_where_no_question_guides_the_selection(
    found: tuple[list[Any], list[Question]], method: str
) -> None:
    anew, cached = (cell(found[0], f"small, second turn {mode}", method) for mode in ("anew", "cached"))
    assert anew.keys() == cached.keys()
    for name, line in anew.items():
        assert (line["prediction"], line["kept_tokens"]) == (cached[name]["prediction"], cached[name]["kept_tokens"])


def test_a_cache_that_goes_on_has_the_tokens_that_the_first_question_kept(
    found: tuple[list[Any], list[Question]],
) -> None:
    alone, anew = cell(found[0], "small", "fastv"), cell(found[0], "small, second turn anew", "fastv")
    cached = cell(found[0], "small, second turn cached", "fastv")
    for name, line in cached.items():
        assert line["kept_tokens"] == alone[name.split(" after ")[1]]["kept_tokens"]
    assert any(line["kept_tokens"] != anew[name]["kept_tokens"] for name, line in cached.items())


def test_a_set_without_two_questions_about_an_image_is_refused(tmp_path: Path) -> None:
    save_folder("llava", tmp_path / "llava")
    write_rows(tmp_path, images=3, questions=1)
    (tmp_path / "compare.yaml").write_text(RECIPE.format(folder=tmp_path, name="llava"))
    with pytest.raises(ValueError, match="no image has two questions of one turn"):
        prepare(load_recipe(tmp_path / "compare.yaml"), progress=False)


def test_conversations_are_left_out() -> None:
    with pytest.raises(ValueError, match="no image has two questions"):
        second_turns([], "anew")
