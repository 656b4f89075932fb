"""The plan and its command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dart_train.__main__ import main
from dart_train.planning import predict, setup
from dart_train.profiling.flops import QuadraticCost, layer_flops
from dart_train.training import train
from tests.fixtures.run_scene import make_recipe
from tests.planning.cases import CPU, FIXED, inputs_of, quick, recipe_of


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


def test_teacher_with_a_stage_of_its_own_runs_at_full_length_until_there(text: str) -> None:
    student = "reduction={method: dart, keep: 0.25, layer: 0, schedule: {kind: fixed}}"
    teacher = "distill={enabled: true, teacher: reduction, reduction: {method: dart, layer: 2, keep: 0.5}}"
    inputs = inputs_of(text, student, teacher)
    [load], full = inputs.budgets, inputs.full.work
    assert load.teacher is not None
    (before, long), (after, short) = load.teacher.stages
    assert (before, before + after) == (2, full.stages[0][0])
    assert (long == full.stages[0][1]).all() and (short < long).any() and (short > load.work.stages[-1][1]).any()


def test_a_layer_that_does_not_fit_is_timed_narrower(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of(text, "parts.language.mode=full", rows=8)
    config, factor = setup.fit_to_device(inputs.config, inputs.setup, CPU)
    assert factor == 1 and config is inputs.config
    enough = setup.one_layer_bytes(setup.narrow(inputs.config, 2), inputs.setup) / setup._USABLE
    monkeypatch.setattr(setup, "free_bytes", lambda device: enough)
    small, factor = setup.fit_to_device(inputs.config, inputs.setup, CPU)
    assert factor == 2 and small.text_config.hidden_size == 32
    true, narrow = (
        sum(layer_flops(inputs.setup.build_one_layer(each, "meta", "eager")), QuadraticCost())
        for each in (inputs.config, small)
    )
    assert setup.scale_by_flops(narrow, inputs.config, small, inputs.setup) == pytest.approx(true)
    rates = inputs.measure(0.02)
    assert "1/2 of its width" in rates.notes[-1] and rates.layer(4, 100) > 0
    monkeypatch.setattr(setup, "free_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match="--no-timing"):
        setup.fit_to_device(inputs.config, inputs.setup, CPU)


def test_plan_compared_with_a_run(text: str) -> None:
    plan = quick(text)
    twice = {name: 2 * value for name, value in plan.expected().items()}
    compared = plan.predicted_vs_actual({**twice, "loss": 1.5})
    assert all(compared[name]["ratio"] == pytest.approx(2) for name in twice)
    assert compared["loss"] == {"predicted": None, "actual": 1.5, "ratio": None}
    lines = plan.compare_with_run({"peak_memory_bytes": 3e9, "step_seconds": 0.25}).splitlines()
    assert "actual" in lines[0] and any("3,000,000,000" in line for line in lines)
    assert [line.split()[-2:] for line in lines if line.startswith("step_seconds")] == [["0.25", "-"]]  # not timed


def test_plan_command_prints_and_writes(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        (["data.max_length=5"], "rows cannot be used (too_long: "),
        (["data.train=[]"], "data.train"),
        (["train={padding_free: true, tokens_per_batch: 300}"], "train.tokens_per_batch=null"),
    ],
)
def test_plan_command_reports_errors(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["plan", str(tmp_path / "mine.yaml"), *overrides, "--no-timing", "--rows", "5"]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_plan_command_refuses_impossible_numbers(tmp_path: Path) -> None:
    for options in (["--rows", "-1"], ["--ranks", "0"], ["--seconds", "nan"]):
        with pytest.raises(SystemExit, match="2"):
            main(["plan", "mine.yaml", *options])


def test_plan_compared_with_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = make_recipe(tmp_path), tmp_path / "run"
    overrides = ["train.max_steps=4", f"train.output_dir={run}", "train.per_device_batch_size=2"]
    overrides += ["reduction={method: dart, keep: 0.25, layer: 2, schedule: {kind: fixed}}"]
    train(recipe, overrides)
    capsys.readouterr()
    assert main(["plan", str(recipe), *overrides, "--seconds", "0.05", "--compare-with", str(run)]) == 0
    found = json.loads((run / "plan_vs_actual.json").read_text())
    assert found["step_seconds"]["actual"] > 0 and found["step_seconds"]["predicted"] > 0
    share = found["share_of_visual_tokens_kept"]
    assert share["actual"] == pytest.approx(share["predicted"], rel=0.02)
    assert "actual / predicted" in capsys.readouterr().out


def test_plan_compared_with_a_folder_without_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(tmp_path)
    assert main(["plan", str(recipe), "--no-timing", "--beside", str(tmp_path)]) == 2
    assert "holds no metrics.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tower", "schedule", "share"),
    [
        ("{layer: 0, keep: 0.5}", "fixed", 0.5),
        ("{layer: 1, keep: 0.5}", "fixed", None),
        ("{layer: 0, keep: 0.5}", "elastic", 0.75),
        ("{tolerance: 0.0}", "fixed", None),
    ],
)
def test_stage_in_the_vision_tower_is_counted(text: str, tower: str, schedule: str, share: float | None) -> None:
    reduction = f"reduction={{method: dart, keep: 0.25, tower: {tower}, schedule: {{kind: {schedule}}}}}"
    inputs, plain = inputs_of(text, reduction), inputs_of(text)
    flops, depth = inputs.flops(), inputs.config.vision_config.num_hidden_layers
    expected = {"{layer: 1, keep: 0.5}": (1 + (depth - 1) * 0.5) / depth}.get(tower, share)
    if expected is not None:
        assert inputs.tower_share == pytest.approx(expected, abs=0.06 if schedule == "elastic" else 1e-9)
    assert 0 < inputs.tower_share <= 1 and plain.tower_share == 1
    full, reduced = (flops.costs(load.work)["vision tower"] for load in (inputs.full, inputs.budgets[0]))
    left = (reduced.sum() / full.sum() - flops.projector / flops.tower) / (1 - flops.projector / flops.tower)
    assert left == pytest.approx(inputs.tower_share)
    assert "reduction.tower leaves" in predict(recipe_of(text, reduction), timing=False, rows=20).notes[0]
