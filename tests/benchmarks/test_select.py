"""`bench select` compares like with like; and what every bench writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dart_train import DART, REDUCERS
from dart_train.__main__ import main
from dart_train.benchmarks.baselines import plain_loops, set_and_loop
from dart_train.benchmarks.select import GATHER, KEPT, LAYER, LAYOUT, LOOPS, READ, SHORT_LAYER, USUAL, make_workloads
from dart_train.benchmarks.table import NOT_MEASURED, BenchReport, BenchTable, milliseconds, percent, times
from dart_train.profiling.selection_scene import TEXT, SelectionScene
from dart_train.profiling.timing import Timing, host_syncs

CPU = torch.device("cpu")


def scene(tokens: int = 96) -> SelectionScene:
    return SelectionScene.draw(tokens, 2, 256, CPU, torch.float32)


@pytest.mark.parametrize("budget", [16, 33, 64])
def test_set_and_loop_selects_the_same_tokens_as_dart(budget: int) -> None:
    drawn, reducer = scene(tokens=144), DART(keep=budget, rule="paper")
    ours = reducer.select(drawn.context(reducer))
    usual = set_and_loop(drawn.states, drawn.keys, drawn.scale, drawn.tokens, budget)
    assert plain_loops(drawn.states, drawn.keys, drawn.scale, drawn.tokens, budget) == usual
    assert [row.nonzero().flatten().tolist() for row in ours] == usual
    assert len(usual[0]) == 8 * (budget // 8) + 4


def test_every_method_keeps_its_budget_in_the_timed_scene() -> None:
    drawn = scene()
    workloads = make_workloads(drawn, list(REDUCERS))
    for method in REDUCERS:
        keep, targets = workloads[method]()  # type: ignore[misc]
        kept = {"keep_all": 96, "fewer_pixels": 96}.get(method, 96 // KEPT)
        assert keep.sum(1).tolist() == [kept, kept], method
        assert (targets is not None) == (method == "pooling")
    assert workloads[GATHER]().shape == (2, 96 // KEPT + TEXT, 256)  # type: ignore[attr-defined]
    layer = workloads[LAYER]()
    assert (layer[0] if isinstance(layer, tuple) else layer).shape == drawn.states.shape  # type: ignore[attr-defined]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="counts synchronisations of a GPU, and there is none")
def test_selection_never_waits_for_the_gpu_and_set_and_loop_does() -> None:
    gpu = torch.device("cuda")
    workloads = make_workloads(SelectionScene.draw(576, 1, 1024, gpu, torch.bfloat16), list(REDUCERS))
    counted = {name: host_syncs(workload, gpu) for name, workload in workloads.items()}
    assert {name: counted[name] for name in REDUCERS} == dict.fromkeys(REDUCERS, 0)
    assert (counted[USUAL] or 0) > 64


def test_numbers_have_three_digits_and_their_spread() -> None:
    assert milliseconds(Timing(0.0123456, 0.012, 0.01299, 9)) == "12.3 [12, 13]"
    assert milliseconds(Timing(1.5, 1.5, 1.5, 1, warm=False)) == "1500 (first run)"
    assert times(45.12) == "45.1x" and times(212.4) == "212x" and percent(0.00407) == "0.407%"


def test_report_as_markdown_and_as_json(tmp_path: Path) -> None:
    table = BenchTable(
        "Sizes",
        {"n": lambda row: str(row["n"]), "time": lambda row: milliseconds(row["t"])},
        [{"n": 10, "t": Timing(0.001, 0.001, 0.002, 2)}],
        ["a note"],
    )
    BenchReport("the command", {"device": "abacus"}, [table]).save(tmp_path)
    text = (tmp_path / "bench.md").read_text()
    assert "`the command`" in text and "device abacus" in text and "- a note" in text
    assert [line for line in text.splitlines() if line.startswith("|")][1:] == [
        "| -- | -------- |",
        "| 10 | 1 [1, 2] |",
    ]
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["command"] == "the command" and content["facts"] == {"device": "abacus"}
    assert content["tables"]["Sizes"]["rows"][0]["t"]["high"] == 0.002


def test_select_command_measures_every_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "select", "--quick", "--batch", "1", "--device", "cpu", "--out", str(tmp_path / "new")]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "new" / "bench.md").read_text()
    content = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert content["command"] == "python -m dart_train bench select --quick --batch 1 --device cpu"
    assert content["facts"]["torch"] == torch.__version__ and content["facts"]["device"]
    rows = {row["method"]: row for row in content["tables"]["Selection"]["rows"]}
    assert set(rows) == {LAYER, SHORT_LAYER, USUAL, LOOPS, READ, *REDUCERS, LAYOUT, GATHER}
    for row in rows.values():
        seconds = row["seconds"]["median"]
        assert 0 < row["seconds"]["low"] <= seconds <= row["seconds"]["high"]
        assert row["share of a layer"] == pytest.approx(seconds / rows[LAYER]["seconds"]["median"])
        rest = 2 * rows[LAYER]["seconds"]["median"] + 30 * rows[SHORT_LAYER]["seconds"]["median"]
        assert row["share of a prefill"] == pytest.approx(seconds / (rest + seconds))
        assert row["times faster than set-and-loop"] == pytest.approx(rows[USUAL]["seconds"]["median"] / seconds)
    assert NOT_MEASURED in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width", "200"], "multiple of 128"),
        (["--tokens", "8"], "expected at least 72"),
        (["--methods", "drat"], "did you mean dart"),
        (["--repeats", "0", "--seconds", "-1"], "--repeats 0: expected more than 0; --seconds -1.0"),
    ],
)
def test_select_command_refuses_impossible_options(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "select", "--quick", *options]) == 2
    assert message in capsys.readouterr().err
