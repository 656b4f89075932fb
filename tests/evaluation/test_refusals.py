"""Everything that is wrong with a comparison is reported in one message, before any weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dart_train.cli.evaluation import compare as main
from dart_train.config import RecipeError, load_recipe
from dart_train.evaluation.comparison import compare
from dart_train.evaluation.comparison_grid import prepare


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch, done: Path) -> None:
    """Reading weights is a failure here."""

    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr("dart_train.checkpoints.loading.read_model", refuse)


def error_of(done: Path, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        compare(load_recipe(done / "compare.yaml", overrides))
    return str(caught.value)


def recipe_problems(done: Path, *overrides: str) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(done / "compare.yaml", overrides)
    return {problem.path: str(problem) for problem in caught.value.issues}


def test_unknown_metrics_are_reported_with_all_other_errors(done: Path) -> None:
    found = recipe_problems(
        done,
        "compare.metrics=[exact_match, bleu]",
        "compare.sets.0.metrics=[anlz]",
        "compare.sets.0.kind_metrics={reading: [vqaa]}",
        "compare.methods=[dart, {method: random, keep: 3}]",
        "compare.batch_size=0",
    )
    assert set(found) == {"compare.batch_size", "compare.methods.1", "compare.metrics.1",
                          "compare.sets.0.metrics.0", "compare.sets.0.kind_metrics.reading.0"}  # fmt: skip
    assert "did you mean anls?" in found["compare.sets.0.metrics.0"]


@pytest.mark.parametrize(
    ("metric", "good"),
    [("loss", True), ("eval_loss", True), ("accuracy_at_0.111", True), ("accuracy_at_full", True), ("bleu", False),
     ("accuracy_at_0.2", False)],
)  # fmt: skip
def test_best_metric_must_be_a_metric_of_validation(done: Path, metric: str, good: bool) -> None:
    more = (f"train.best_metric={metric}", "data.validation=[{path: rows.json}]")
    if good:
        assert load_recipe(done / "compare.yaml", more).train.best_metric == metric
    else:
        assert "train.best_metric" in recipe_problems(done, *more)


def test_everything_wrong_with_folders_is_one_message(done: Path, tmp_path: Path) -> None:
    bare, newer, rows = tmp_path / "bare", tmp_path / "newer", tmp_path / "rows.json"
    for folder in (bare, newer):
        shutil.copytree(done / "llava", folder)
    (bare / "processor_config.json").unlink()
    (newer / "reducer.json").write_text(json.dumps({"format": 1, "stages": [{"method": "dart9", "keep": 4}]}))
    row = {"image": "gone.png", "question": "What?", "answer": "this"}
    rows.write_text(json.dumps([row, row, {"image": "0.png"}]))
    message = error_of(
        done,
        f"compare.checkpoints={{bare: {bare}, newer: {newer}, gone: {tmp_path}/nowhere, good: {done}/llava}}",
        f"compare.sets.0.path={rows}",
        "compare.methods=[{method: dart, layer: 9}]",
    )
    lines = message.splitlines()
    assert lines[0] == "cannot run the comparison: 6 problems"
    expected = ["unknown_format", "gone.png", "bare: ", "newer: ", "gone: ", "good: dart (layer=9)"]
    for words, line in zip(["no conversations", "gone.png", "bare: ", "newer: ", "gone: ", "layer=9"], lines[1:],
                           strict=True):  # fmt: skip
        assert words in line, (words, expected, message)
    assert "newer version" in message and "no processor" in message


def test_errors_of_the_recipe_and_of_what_it_names_are_one_message(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, newer, rows = tmp_path / "bare", tmp_path / "newer", tmp_path / "rows.json"
    for folder in (bare, newer):
        shutil.copytree(done / "llava", folder)
    (bare / "processor_config.json").unlink()
    (newer / "reducer.json").write_text(json.dumps({"format": 2, "stages": []}))
    rows.write_text(json.dumps([{"image": "gone.png", "question": "What?", "answer": "this"}]))
    overrides = [
        f"compare.checkpoints={{bare: {bare}, newer: {newer}, gone: {tmp_path}/nowhere, good: {done}/llava}}",
        f"compare.sets.0.path={rows}",
        "compare.methods=[{method: dart, layer: 9}]",
        "compare.metrics=[bleu]",
        "compare.batch_siz=3",
        f"compare.output_dir={tmp_path}/out",
    ]
    assert main([str(done / "compare.yaml"), *overrides]) == 2
    message = capsys.readouterr().err  # a progress bar first
    first, *lines = message[message.index("compare: ") :].splitlines()
    assert first.endswith("compare.yaml: 7 problems") and len(lines) == 7
    expected = ["compare.batch_siz: unknown key", "compare.metrics.0: ", "gone.png", "compare.checkpoints.bare: ",
                "compare.checkpoints.newer: ", "compare.checkpoints.gone: ", "good: dart"]  # fmt: skip
    assert [words for words, line in zip(expected, lines, strict=True) if words not in line] == []
    assert not (tmp_path / "out").exists()
    assert "compare.metrics.0" in recipe_problems(done, *overrides) and len(recipe_problems(done, *overrides)) == 2


def test_invalid_methods_do_not_hide_other_errors(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["compare.methods=[drat]", "compare.sets.0.path=nowhere.json", "model.path=./gone"]
    assert main([str(done / "compare.yaml"), *more]) == 2
    message = capsys.readouterr().err
    assert all(words in message for words in ("3 problems", "did you mean dart?", "nowhere.json", "model.path: ./gone"))


def test_missing_question_set_is_an_error(done: Path) -> None:
    assert "nowhere.json" in error_of(done, "compare.sets.0.path=nowhere.json")


def test_set_that_no_metric_can_score_is_an_error(done: Path, tmp_path: Path) -> None:
    here = f"compare.output_dir={tmp_path}/out"
    message = error_of(done, "compare.metrics=[yes_no_f1]", here)
    assert "compare.sets.0: yes_no_f1 cannot score any of its 14 questions" in message and "1 problem" in message
    for good in ("compare.metrics=[yes_no_f1, anls]", "compare.sets.0.kind_metrics={reading: [anls]}"):
        prepare(load_recipe(done / "compare.yaml", ["compare.metrics=[yes_no_f1]", good, here]), progress=False)


def test_method_that_the_family_does_not_support_is_an_error(done: Path, tmp_path: Path) -> None:
    from tests.zoo import save_folder

    save_folder("gemma3", tmp_path / "gemma3")
    message = error_of(done, f"model.path={tmp_path}/gemma3", "compare.methods=[fewer_pixels, dart]")
    assert "fewer_pixels" in message and "use another method" in message and "1 problem" in message


def test_command_reports_errors_once_and_exits_with_2(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(done / "compare.yaml"), "compare.sets.0.path=nowhere.json"]) == 2
    assert capsys.readouterr().err.count("nowhere.json") == 1
    assert main([str(done / "compare.yaml"), "compare.sets=[]"]) == 2
    assert "compare.sets: missing" in capsys.readouterr().err


def test_good_recipe_is_prepared_without_weights(done: Path) -> None:
    prepared = prepare(load_recipe(done / "compare.yaml"), progress=False)
    assert len(prepared.questions) == 14 and len(prepared.cells) == 5


def test_learned_without_a_scorer_file_is_refused(done: Path, tmp_path: Path) -> None:
    from tests.zoo import save_folder

    save_folder("llava", tmp_path / "plain")
    options = [
        f"model.path={tmp_path / 'plain'}",
        "compare.methods=[learned]",
        f"compare.output_dir={tmp_path / 'out'}",
    ]
    with pytest.raises(ValueError, match=r"scorer\.safetensors is missing"):
        compare(load_recipe(done / "compare.yaml", options))
