"""Will it pay? The plan as a whole, and its command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dart_train.__main__ import main
from dart_train.planning import predict, room
from dart_train.profiling.flops import QuadraticCost, layer_flops
from tests.planning.cases import CPU, FIXED, case_of, quick, recipe_of


@pytest.mark.parametrize("overrides", [[], ["distill.enabled=true", "parts.vision.mode=lora"]])
def test_timed_plans_add_up(text: str, overrides: list[str]) -> None:
    plan = predict(recipe_of(text, *overrides), device="cpu", rows=20, seconds=0.05)
    assert {call.split()[0] for call in plan.timings} >= {"layer", "head", "tower", "body", "choice"}
    for cost in (plan.full, *plan.budgets):
        assert cost.seconds is not None and cost.step_seconds == pytest.approx(sum(cost.seconds.values()))
        assert all(np.isfinite(x) and x >= 0 for x in cost.seconds.values()) and cost.seconds["decoder layers"] > 0
    assert ("teacher" in (plan.recipe.seconds or {})) == bool(overrides)
    mean = sum(cost.share * (cost.step_seconds or 0) for cost in plan.budgets)
    assert plan.recipe.step_seconds == pytest.approx(mean)
    assert plan.recipe.peak_bytes == max(cost.peak_bytes for cost in plan.budgets)
    assert json.loads(json.dumps(plan.to_dict()))["expected"] == plan.expected()


def test_a_layer_that_finds_no_room_is_timed_narrower(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(text, "parts.language.mode=full", rows=8)
    config, factor = room.fitting(case.config, case.setup, CPU)
    assert factor == 1 and config is case.config
    enough = room._size(room.narrowed(case.config, 2), case.setup) / room._SHARE
    monkeypatch.setattr(room, "free_bytes", lambda device: enough)
    small, factor = room.fitting(case.config, case.setup, CPU)
    assert factor == 2 and small.text_config.hidden_size == 32
    true, narrow = (sum(layer_flops(case.setup.one_layer(each)), QuadraticCost()) for each in (case.config, small))
    assert room.widened(narrow, case.config, small, case.setup) == pytest.approx(true)
    rates = case.seconds(0.02)
    assert "1/2 of its width" in rates.notes[-1] and rates.layer(4, 100) > 0
    monkeypatch.setattr(room, "free_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match="--no-timing"):
        room.fitting(case.config, case.setup, CPU)


def test_a_run_stands_beside_its_plan(text: str) -> None:
    plan = quick(text)
    twice = {name: 2 * value for name, value in plan.expected().items()}
    compared = plan.compared({**twice, "loss": 1.5})
    assert all(compared[name]["ratio"] == pytest.approx(2) for name in twice)
    assert compared["loss"] == {"predicted": None, "actual": 1.5, "ratio": None}
    lines = plan.beside({"peak_memory_bytes": 3e9, "step_seconds": 0.25}).splitlines()
    assert "actual" in lines[0] and any("3,000,000,000" in line for line in lines)
    assert [line.split()[-2:] for line in lines if line.startswith("step_seconds")] == [["0.25", "-"]]  # not timed


def test_command_tells_and_writes(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    options = ["--no-timing", "--device", "cpu", "--rows", "20", "--out", str(tmp_path / "out")]
    assert main(["plan", str(tmp_path / "mine.yaml"), FIXED, *options]) == 0
    out = capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert "plan of mine" in out and "keep 14 tokens" in out and "FLOPs allow" in out and "not timed" in out
    assert written["version"] == 1 and written["full"]["seconds"] is None and written["budgets"][0]["visual_kept"] == 14
    assert written["run"]["steps"] == 123 and written["bound"] > 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reduction.keeep=3"], "keeep"),
        (["model.path=/nowhere"], "model.path"),
        (["reduction.layer=9"], "5 layers"),
        (["data.max_length=5"], "can be used"),
        (["data.train=[]"], "data.train"),
    ],
)
def test_command_refuses_in_words(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["plan", str(tmp_path / "mine.yaml"), *overrides, "--no-timing", "--rows", "5"]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_command_refuses_impossible_numbers(tmp_path: Path) -> None:
    for options in (["--rows", "-1"], ["--ranks", "0"], ["--seconds", "nan"]):
        with pytest.raises(SystemExit, match="2"):
            main(["plan", "mine.yaml", *options])
