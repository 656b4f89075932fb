"""Latency, memory and FLOPs of every cell."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dart_train import DART, attach
from dart_train.config import load_recipe
from dart_train.evaluation import comparison
from dart_train.evaluation.comparison import compare
from dart_train.evaluation.comparison_grid import prepare
from dart_train.evaluation.cost import PrefillFlops, PrefillShape, representative_questions
from dart_train.evaluation.generate import LoadedCheckpoint, TokenTimestamps
from dart_train.evaluation.tables import COSTS, read_costs, write_costs
from dart_train.profiling.memory import kv_cache_bytes
from dart_train.profiling.timing import clock
from tests.zoo import FAMILIES, make_batch

HEAD, KV_HEADS, LAYERS, FLOAT = 16, 2, 5, 4


@pytest.fixture(scope="module")
def costs(done: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (done / "out" / "cost.csv").open(newline="") as file:
        return {(row["method"], row["budget"]): row for row in csv.DictReader(file)}


def test_kv_bytes_follow_from_the_kept_tokens(costs) -> None:
    for (_, budget), row in costs.items():
        dropped = {"full": 0, "8": 56, "0.25": 48}[budget]
        length, layer = int(row["prompt_tokens"]), 2
        tokens = layer * length + (LAYERS - layer) * (length - dropped)
        assert int(row["kv_bytes"]) == 2 * KV_HEADS * HEAD * FLOAT * tokens
        assert int(row["kept"]) == 64 - dropped and int(row["visual_tokens"]) == 64


def test_every_phase_has_a_median_and_quartiles(costs) -> None:
    for row in costs.values():
        for phase in ("prefill", "first_token", "total"):
            assert 0 < float(row[f"{phase}_q1"]) <= float(row[phase]) <= float(row[f"{phase}_q3"])
        assert 0 < float(row["decode"]) < float(row["total_q3"]) / 2  # from one of three tokens to the next
        assert int(row["repeats"]) == 2 and int(row["new_tokens"]) == 3
        assert int(row["peak_bytes"]) > int(row["kv_bytes"])


def test_speed_ups_and_bound_are_relative_to_full_tokens(costs) -> None:
    full = costs["full", "full"]
    assert [float(full[name]) for name in ("faster_prefill", "faster_total", "bound")] == [1, 1, 1]
    for row in costs.values():
        assert float(row["bound"]) == pytest.approx(float(full["flops"]) / float(row["flops"]), rel=1e-4)
    assert 1 < float(costs["dart", "0.25"]["bound"]) < float(costs["dart", "8"]["bound"])


@pytest.mark.parametrize("reduced", [False, True])
def test_flops_match_a_counted_forward(reduced: bool, done: Path) -> None:
    """Counted in the real forward with eager attention, which shows every product; what counting leaves out by design
    (attention within the tower, the choice) is little."""
    model, batch = FAMILIES["llava"].model("eager"), make_batch("llava", images=(1, 1), question_words=(4, 4))
    visual = int((batch["input_ids"] == model.config.image_token_id).sum())
    arithmetic = PrefillFlops(model, batch, visual)
    rows, length = batch["input_ids"].shape
    counter = FlopCounterMode(display=False)
    if reduced:
        with attach(model, DART(keep=8, layer=2)) as attached, torch.no_grad(), counter:
            model(**batch, logits_to_keep=1)
        shape = PrefillShape(rows, length, ((2, attached.last.length),), visual)
    else:
        with torch.no_grad(), counter:
            model(**batch, logits_to_keep=1)
        shape = PrefillShape(rows, length, (), visual)
    assert arithmetic.of(shape) == pytest.approx(counter.get_total_flops(), rel=0.12)


def test_kv_bytes_count_storages_and_each_once() -> None:
    storage = torch.zeros(2, 10)
    layer = SimpleNamespace(keys=storage[:, :3], values=storage[:, 3:])
    assert kv_cache_bytes(SimpleNamespace(layers=[layer])) == 80  # what is held, not what is looked at


def test_token_timestamps_are_recorded_and_change_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    read = iter([10.0, 11.0, 13.0, 16.0])
    monkeypatch.setattr(clock, "read", lambda: next(read))
    model, batch = FAMILIES["llava"].model("eager"), make_batch("llava", images=(1, 1), question_words=(4, 4))
    timestamps = TokenTimestamps()
    with_ticks = model.generate(
        **batch, max_new_tokens=4, min_new_tokens=4, do_sample=False, stopping_criteria=[timestamps]
    )
    assert timestamps.times == [10.0, 11.0, 13.0, 16.0] and timestamps.seconds_per_token() == 2.0
    assert torch.equal(with_ticks, model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False))


def test_representative_questions_have_images_and_median_length(done: Path) -> None:
    questions = prepare(load_recipe(done / "compare.yaml"), progress=False).questions
    lengths = sorted(len(question.text) for question in questions if question.refs)
    (one,) = representative_questions(questions, 1)
    assert len(one.text) == lengths[len(lengths) // 2]
    assert len(representative_questions(questions, 4)) == 4 and all(
        question.refs for question in representative_questions(questions, 4)
    )


def test_costs_round_trip_through_cost_json(done: Path, tmp_path: Path) -> None:
    found = read_costs(done / "out" / COSTS)
    assert list(found) == ["base"] and len(found["base"][1]) == 5
    write_costs(tmp_path / COSTS, found)
    assert read_costs(tmp_path / COSTS) == found
    (tmp_path / COSTS).write_text("{torn")
    assert read_costs(tmp_path / COSTS) == {}


def test_costs_of_the_same_settings_are_reused(done: Path, again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr(LoadedCheckpoint, "__init__", refuse)
    monkeypatch.setattr(comparison, "write", lambda results: None)
    same = [f"compare.output_dir={again}", "compare.timing=true", "compare.timing_repeats=2"]
    results = compare(load_recipe(done / "compare.yaml", same))
    assert results is not None and len(results.costs) == 5
    with pytest.raises(AssertionError, match="loaded"):
        compare(load_recipe(done / "compare.yaml", [*same, "compare.timing_repeats=3"]))
