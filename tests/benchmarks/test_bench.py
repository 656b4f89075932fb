"""The benchmark compares like with like, and writes down what it measured, where, and how often."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dart_train import DART, REDUCERS
from dart_train.__main__ import main
from dart_train.benchmarks.select import GATHER, KEPT, LAYER, LAYOUT, LOOPS, READ, USUAL, jobs_of
from dart_train.benchmarks.set_and_loop import plain_loops, set_and_loop
from dart_train.benchmarks.table import NOT_MEASURED, Report, Table, milliseconds, percent, times
from dart_train.profiling import timing
from dart_train.profiling.selection_scene import TEXT, SelectionScene, tile_grids
from dart_train.profiling.timing import Timing, host_syncs, interleaved

CPU = torch.device("cpu")


def scene(tokens: int = 96, batch: int = 2, width: int = 256, dtype: torch.dtype = torch.float32) -> SelectionScene:
    return SelectionScene.draw(tokens, batch, width, CPU, dtype)


# like with like --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [16, 33, 64])
def test_the_usual_code_and_ours_keep_the_same_tokens(budget: int) -> None:
    drawn = scene(tokens=144)
    ours = DART(keep=budget, rule="paper").select(drawn.context(DART(keep=budget, rule="paper")))
    usual = set_and_loop(drawn.states, drawn.keys, drawn.scale, drawn.tokens, budget)
    assert plain_loops(drawn.states, drawn.keys, drawn.scale, drawn.tokens, budget) == usual
    assert [row.nonzero().flatten().tolist() for row in ours] == usual
    assert len(usual[0]) == 8 * (budget // 8) + 4


def test_a_scene_is_one_picture_with_the_prompt_behind_it() -> None:
    pools = scene(tokens=100, batch=3).groups
    assert pools.sizes == (100,) * 3 and pools.prompt_sizes == (TEXT,) * 3 and pools.row_of == (0, 1, 2)
    assert pools.last.tolist() == [139] * 3


@pytest.mark.parametrize(
    ("tokens", "grid"), [(576, [(24, 24)]), (2880, [(24, 24)] * 5), (64, [(8, 8)]), (96, [(8, 12)])]
)
def test_tiles_hold_every_token(tokens: int, grid: list[tuple[int, int]]) -> None:
    assert tile_grids(tokens) == grid


def test_every_method_keeps_its_budget_on_the_scene_that_is_timed() -> None:
    drawn = scene()
    jobs = jobs_of(drawn, list(REDUCERS))
    for method in REDUCERS:
        keep, content = jobs[method]()  # type: ignore[misc]
        kept = {"keep_all": 96, "fewer_pixels": 96}.get(method, 96 // KEPT)
        assert keep.sum(1).tolist() == [kept, kept], method
        assert (content is not None) == (method == "pooling")
    assert jobs[GATHER]().shape == (2, 96 // KEPT + TEXT, 256)  # type: ignore[attr-defined]
    layer = jobs[LAYER]()
    assert (layer[0] if isinstance(layer, tuple) else layer).shape == drawn.states.shape  # type: ignore[attr-defined]


# timing ----------------------------------------------------------------------------------------------------


def test_repeats_are_interleaved_and_the_warm_up_stands_apart() -> None:
    calls: list[str] = []
    jobs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timings = interleaved(jobs, CPU, repeats=3, seconds=10)
    assert "".join(calls) == "ab" + "ab" * 3
    assert all(found.repeats == 3 and found.warm for found in timings.values())


def test_slow_jobs_are_repeated_less_and_never_beyond_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def once(job: Any, device: torch.device) -> float:
        calls.append(job)
        return float(job)

    monkeypatch.setattr(timing, "time_once", once)
    jobs: dict[str, Any] = {"fast": 0.01, "slow": 0.4, "too slow": 1.5}
    timings = interleaved(jobs, CPU, repeats=6, seconds=1.0)
    assert calls == [0.01, 0.4, 1.5] + [0.01, 0.4] * 2 + [0.01] * 4
    assert timings["fast"].repeats == 6 and timings["slow"] == Timing(0.4, 0.4, 0.4, 2)
    assert timings["too slow"] == Timing(1.5, 1.5, 1.5, 1, warm=False)


def test_median_and_quartiles() -> None:
    assert Timing.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Timing(3.0, 2.0, 4.0, 5)
    assert Timing.of([2.0], warm=False) == Timing(2.0, 2.0, 2.0, 1, False)


def test_without_a_gpu_synchronisations_are_not_counted() -> None:
    assert host_syncs(lambda: pytest.fail("not called"), CPU) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="counts synchronisations of a GPU, and there is none")
def test_on_a_gpu_selection_never_waits_and_the_usual_code_does() -> None:
    gpu = torch.device("cuda")
    jobs = jobs_of(SelectionScene.draw(576, 1, 1024, gpu, torch.bfloat16), list(REDUCERS))
    counted = {name: host_syncs(job, gpu) for name, job in jobs.items()}
    assert {name: counted[name] for name in REDUCERS} == dict.fromkeys(REDUCERS, 0)
    assert (counted[USUAL] or 0) > 64


# what is written -------------------------------------------------------------------------------------------


def test_numbers_are_written_with_three_digits_and_their_spread() -> None:
    assert milliseconds(Timing(0.0123456, 0.012, 0.01299, 9)) == "12.3 [12, 13]"
    assert milliseconds(Timing(1.5, 1.5, 1.5, 1, warm=False)) == "1500 (first run)"
    assert times(45.12) == "45.1x" and times(212.4) == "212x" and percent(0.00407) == "0.407%"


def test_a_report_reads_as_markdown_and_as_json(tmp_path: Path) -> None:
    table = Table(
        "Sizes",
        {"n": lambda row: str(row["n"]), "time": lambda row: milliseconds(row["t"])},
        [{"n": 10, "t": Timing(0.001, 0.001, 0.002, 2)}],
        ["a note"],
    )
    Report("the command", {"device": "abacus"}, [table]).save(tmp_path)
    text = (tmp_path / "bench.md").read_text()
    assert "`the command`" in text and "device abacus" in text and "- a note" in text
    assert [line for line in text.splitlines() if line.startswith("|")][1:] == [
        "| -- | -------- |",
        "| 10 | 1 [1, 2] |",
    ]
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["command"] == "the command" and content["facts"] == {"device": "abacus"}
    assert content["tables"]["Sizes"]["rows"][0]["t"]["high"] == 0.002


def test_the_command_measures_every_method_and_names_the_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", "select", "--quick", "--batch", "1", "--device", "cpu", "--out", str(tmp_path / "new")]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "new" / "bench.md").read_text()
    content = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert content["command"] == "python -m dart_train bench select --quick --batch 1 --device cpu"
    assert content["facts"]["torch"] == torch.__version__ and content["facts"]["device"]
    rows = {row["method"]: row for row in content["tables"]["Selection"]["rows"]}
    assert set(rows) == {LAYER, USUAL, LOOPS, READ, *REDUCERS, LAYOUT, GATHER}
    for row in rows.values():
        seconds = row["seconds"]["median"]
        assert 0 < row["seconds"]["low"] <= seconds <= row["seconds"]["high"]
        assert row["share of a layer"] == pytest.approx(seconds / rows[LAYER]["seconds"]["median"])
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
def test_nonsense_is_refused_before_anything_is_timed(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "select", "--quick", *options]) == 2
    assert message in capsys.readouterr().err
