"""`calibrate` chooses the smallest budget within the loss; its guarantee fails no more often than it states."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dart_train import DART, Learned, load
from dart_train.checkpoints import commit_checkpoint, is_complete, read_reducers, write_reducers
from dart_train.cli.main import main
from dart_train.common.metrics import METRICS
from dart_train.data.images import ImageStore
from dart_train.data.sample import ImageRef, Turn
from dart_train.evaluation.calibration import (
    CalibrationLevel,
    calibrate,
    digest_of,
    independent_questions,
    run_tests,
)
from dart_train.evaluation.questions import Question
from dart_train.exporting.calibration_card import update_card
from dart_train.reduction.reducer_file import read_reducer_file
from tests.evaluation import scene

LEVEL = CalibrationLevel(max_loss=0.02, confidence=0.95)
EXACT = METRICS["exact_match"]


def draw(rng: np.random.Generator, number: int, loss: float, changed: float) -> tuple[int, int, int]:
    """Counts of one budget whose true loss is `loss`, where a share `changed` of the answers changes."""
    lost, gained, _ = rng.multinomial(number, [(changed + loss) / 2, (changed - loss) / 2, 1 - changed])
    return (number, int(lost), int(gained))


@pytest.mark.parametrize("changed", [0.06, 0.3])
def test_of_1000_calibrations_at_the_least_favourable_truth_few_choose_a_budget_that_loses_too_much(
    changed: float,
) -> None:
    """The second budget loses exactly what is allowed, which is the hardest case to reject: to choose it, or a smaller
    one, is the failure that the confidence is about."""
    level, number, rng, wrong = CalibrationLevel(0.05, 0.95), 300, np.random.default_rng(0), 0
    for _ in range(1000):
        counts = {
            "0.5": draw(rng, number, 0.0, 0.005),
            "0.2": draw(rng, number, 0.05, changed),
            "0.1": draw(rng, number, 0.06, changed),
        }
        wrong += sum(test.passed for test in run_tests(counts, number, level)) > 1
    alpha, error = 0.05, (0.05 * 0.95 / 1000) ** 0.5
    assert alpha / 5 <= wrong / 1000 <= alpha + 2 * error  # below: it would be safe by passing nothing


def test_power_a_budget_that_loses_nothing_is_found() -> None:
    rng = np.random.default_rng(1)
    found = sum(run_tests({"0.2": draw(rng, 900, 0.0, 0.02)}, 900, LEVEL)[0].passed for _ in range(200))
    assert found / 200 > 0.9


def test_order_is_fixed_a_smaller_budget_never_passes_after_one_that_failed() -> None:
    tests = run_tests({"0.5": (800, 1, 0), "0.2": (800, 60, 0), "0.1": (800, 0, 0)}, 800, LEVEL)
    assert [(test.tested, test.passed) for test in tests] == [(True, True), (True, False), (False, False)]
    assert tests[2].p < 0.05  # it would have passed on its own


def record(budget: str, number: int, right: bool, kind: str = "") -> dict[str, Any]:
    prediction = "yes" if right else "no"
    names = {"set": "s", "id": str(number), "kind": kind, "budget": budget}
    return {**names, "prediction": prediction, "answers": ["yes"]}


def question(number: int, image: str | None = None, kind: str = "") -> Question:
    parts = ("what?",) if image is None else (ImageRef(path=image), f"what {number}?")
    return Question("s", str(number), kind, (Turn("user", parts),), ("yes",), str(number), ImageStore())


def test_calibration_of_answers_chooses_and_describes_kinds() -> None:
    kinds = ["colour", "count"]
    questions = [question(n, kind=kinds[n % 2]) for n in range(600)]
    answers = [record("full", n, True, kinds[n % 2]) for n in range(600)]
    answers += [record("0.5", n, n != 0, kinds[n % 2]) for n in range(600)]
    answers += [record("0.1", n, n >= 60 or n % 2 == 0, kinds[n % 2]) for n in range(600)]
    found = calibrate(answers, questions, ["0.5", "0.1"], EXACT, LEVEL)
    assert found.chosen is not None and found.chosen.budget == "0.5"
    assert [(test.lost, test.gained) for test in found.tests] == [(1, 0), (30, 0)]
    assert {kind.kind: kind.smallest(["0.5", "0.1"], 0.02) for kind in found.kinds} == {"colour": "0.1", "count": "0.5"}
    assert json.loads(json.dumps(found.to_dict()))["tests"][1]["loss"] == pytest.approx(0.05)


def test_answers_without_full_tokens_are_refused() -> None:
    questions = [question(n) for n in range(300)]
    with pytest.raises(ValueError, match="0 of 300 questions were answered with full tokens"):
        calibrate([record("0.5", n, True) for n in range(300)], questions, ["0.5"], EXACT, LEVEL)


def test_too_few_questions_are_refused_with_the_number_needed() -> None:
    questions = [question(n) for n in range(100)]
    answers = [record(budget, n, True) for budget in ("full", "0.5") for n in range(100)]
    with pytest.raises(ValueError, match=r"100 questions cannot show .* at least 204"):
        calibrate(answers, questions, ["0.5"], EXACT, LEVEL)


def test_metrics_that_are_not_right_or_wrong_are_refused() -> None:
    with pytest.raises(ValueError, match="anls: the test needs answers that are right or wrong"):
        calibrate([], [question(n) for n in range(300)], ["0.5"], METRICS["anls"], LEVEL)


@pytest.mark.parametrize(("loss", "confidence"), [(0.0, 0.95), (1.0, 0.95), (0.02, 1.0), (0.02, 0.2)])
def test_impossible_levels_are_refused(loss: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        CalibrationLevel(loss, confidence)


def test_one_question_of_each_image_counts() -> None:
    shared = [question(n, image=f"{n % 5}.png") for n in range(20)] + [question(20), question(21)]
    chosen = independent_questions(shared, seed=0)
    images = [ref.path for each in chosen for ref in each.refs]
    assert sorted(images) == [f"{n}.png" for n in range(5)] and len(chosen) == 7
    assert chosen == independent_questions(shared, seed=0)
    assert any(chosen != independent_questions(shared, seed=seed) for seed in range(1, 5))
    assert digest_of(chosen) != digest_of([replace(chosen[0], answers=("no",)), *chosen[1:]])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a small comparison, whose model has a reduction as a checkpoint of a run has."""
    folder = tmp_path_factory.mktemp("calibrate")
    scene.make(folder)
    write_reducers(folder / "llava", [DART(keep=0.25)])
    return folder


@pytest.fixture
def checkpoint(comparison: Path, tmp_path: Path) -> Path:
    """A complete checkpoint."""
    shutil.copytree(comparison / "llava", tmp_path / "draft")
    commit_checkpoint(tmp_path / "draft", tmp_path / "checkpoint-3", {"step": 3})
    return tmp_path / "checkpoint-3"


def command(comparison: Path, checkpoint: Path, *more: str) -> int:
    out = f"compare.output_dir={checkpoint.parent / 'out'}"
    return main(["calibrate", str(checkpoint), str(comparison / "compare.yaml"), out, *more])


# Fourteen questions: enough for a loss of 40 points only.
LAX = ("--max-loss", "40", "--confidence", "0.9")


def test_command_writes_the_budget_which_load_serves(
    comparison: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load(checkpoint).attached
    assert before is not None and before.reducers[0].keep == 0.25
    assert command(comparison, checkpoint, "compare.budgets=[1.0,1.0,0.99,0.98]", *LAX) == 0
    printed = capsys.readouterr().out
    assert "budget 0.98" in printed and "served from now on" in printed
    saved = read_reducer_file(checkpoint)
    assert saved is not None and saved.calibration is not None and saved.trained_stages == (DART(keep=0.25),)
    found = saved.calibration
    assert found["questions"] == scene.NUMBER
    assert [test["budget"] for test in found["tests"]] == ["0.99", "0.98"]
    assert {"name", "path", "digest", "questions"} <= found["sets"][0].keys()
    assert is_complete(checkpoint)
    served = load(checkpoint).attached
    assert served is not None and served.reducers == (DART(keep=0.98),)


def test_nothing_is_written_where_no_budget_passes(
    comparison: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_fail(counts: Mapping[str, Any], *rest: Any) -> Any:
        return run_tests(dict.fromkeys(counts, (14, 14, 0)), *rest)

    monkeypatch.setattr("dart_train.evaluation.calibration.run_tests", all_fail)
    before = (checkpoint / "reducer.json").read_bytes()
    assert command(comparison, checkpoint, "compare.budgets=[0.99]", *LAX) == 1
    assert "no budget passed" in capsys.readouterr().out
    assert (checkpoint / "reducer.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["compare.budgets=[0.2,0.5]"], "write [0.5, 0.2]"),
        (["compare.budgets=[16,0.5]"], "only ratios or only numbers"),
        (["compare.budgets=[1.0]"], "expected budgets below full tokens"),
        (["compare.metrics=[anls]"], "answers that are right or wrong"),
        (["compare.budgets=[0.5]", "--max-loss", "2"], "14 questions cannot show"),
        (["--max-loss", "0"], "max loss 0"),
    ],
)
def test_command_refuses(
    comparison: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    assert command(comparison, checkpoint, *changes) == 2
    assert message in capsys.readouterr().err


def test_checkpoint_without_a_reducer_is_refused(
    comparison: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(comparison / "llava", plain)
    (plain / "reducer.json").unlink()
    assert command(comparison, plain, "compare.budgets=[0.5]", *LAX) == 2
    assert "has no reducer.json" in capsys.readouterr().err
    write_reducers(plain, [])
    assert command(comparison, plain, "compare.budgets=[0.5]", *LAX) == 2
    assert "was trained without a reduction" in capsys.readouterr().err


def test_reducer_files_of_earlier_releases_load_unchanged(tmp_path: Path) -> None:
    stages = [Learned(keep=0.111, share=0.5)]
    content = {"format": 1, "stages": [stage.to_dict() for stage in stages]}
    (tmp_path / "reducer.json").write_text(json.dumps(content, indent=2) + "\n")
    saved = read_reducer_file(tmp_path)
    assert read_reducers(tmp_path) == stages and saved is not None and saved.calibration is None
    assert saved.to_dict() == content


def test_card_of_an_export_says_where_it_breaks_and_is_updated(checkpoint: Path) -> None:
    kinds = ["colour", "count"]
    questions = [question(n, kind=kinds[n % 2]) for n in range(600)]
    answers = [record(budget, n, n != 0 or budget == "full") for budget in ("full", "0.5") for n in range(600)]
    answers += [record("0.1", n, n >= 60) for n in range(600)]
    found = calibrate(answers, questions, ["0.5", "0.1"], EXACT, LEVEL)
    about = {
        **found.to_dict(),
        "bound": 0.0123,
        "questions": 600,
        "metric": "exact_match",
        "one_question_per_image": True,
        "sets": [{"name": "s", "path": "s.json", "questions": 600, "digest": "abc"}],
    }
    write_reducers(checkpoint, [DART(keep=0.5)], calibration=about)
    card = checkpoint / "README.md"
    card.write_text("# model\n\n## Results\n\nnone\n\n## Versions\n\n- torch\n")
    update_card(checkpoint)
    once = card.read_text()
    assert once.index("## Results") < once.index("## Where it breaks") < once.index("## Versions")
    assert "Served at budget **0.5**" in once and "fewer than 1.23 of 100 answers are lost" in once
    assert "| 0.1 | 100.0 | 90.0 | +10.0 |" in once and "| colour | 300 | 100.0 | +0.3 | +10.0 | 0.5 |" in once
    update_card(checkpoint)
    assert card.read_text() == once
