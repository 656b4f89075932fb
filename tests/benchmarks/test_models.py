"""The benches that run whole models: each row really does what it says, and the bound is what was counted."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dart_train import DART, attach
from dart_train.__main__ import main
from dart_train.benchmarks import goals
from dart_train.benchmarks.decode import Answer
from dart_train.benchmarks.ideal import Ideal, layer_work
from dart_train.benchmarks.options import EAGER, FULL, MASKED, NOTHING, OURS, PIXELS, USUAL, WAYS
from dart_train.benchmarks.shapes import SHAPES
from dart_train.benchmarks.sidebyside import tokens_seen
from dart_train.benchmarks.subject import Subject, subject_of
from dart_train.benchmarks.table import Table
from dart_train.benchmarks.training import TrainStep
from dart_train.benchmarks.ways import LAYER, Way, ways_of
from dart_train.models.structure import find_parts
from dart_train.profiling.device import DevicePeak
from dart_train.profiling.memory import kv_cache_bytes, peak_memory
from dart_train.profiling.op_count import OpCount, count_ops
from dart_train.profiling.timing import Clock, Timing, WithContext, ratio, rounds, time_once
from dart_train.training.objective import forward_supervised

CPU = torch.device("cpu")
PEAK = DevicePeak(1e9, 1e9)
TINY = 0.03


@cache
def subject(key: str = "llava", mode: Any = "lora") -> Subject:
    return subject_of(SHAPES[key], TINY, 1, CPU, torch.float32, mode, answer=8 if mode else 0)


def way(name: str, of: Subject, output: str = "compact") -> Way:
    return ways_of(of.model, of.shape, of.kept, output, (name,))[0]


# shapes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "width", "layers", "tower"),
    [
        ("llava", 4096, 32, 24),
        ("llava_next", 4096, 32, 24),
        ("qwen2_5_vl", 3584, 28, 32),
        ("qwen3_vl", 4096, 36, 27),
    ],
)
def test_at_scale_one_the_shapes_are_those_of_the_published_models(
    key: str, width: int, layers: int, tower: int
) -> None:
    config = SHAPES[key].config(1.0)
    text, vision = config.get_text_config(), config.vision_config
    assert (text.hidden_size, text.num_hidden_layers) == (width, layers)
    assert getattr(vision, "num_hidden_layers", None) == tower or vision.depth == tower
    assert getattr(vision, "fullatt_block_indexes", [7, 15, 23, 31]) == [7, 15, 23, 31]
    assert getattr(vision, "deepstack_visual_indexes", [8, 16, 24]) == [8, 16, 24]


def test_an_eighth_is_the_shape_of_the_goal() -> None:
    text = SHAPES["llava"].config(0.125).get_text_config()
    assert (text.hidden_size, text.num_hidden_layers) == (512, 12)


@pytest.mark.parametrize("key", SHAPES)
def test_the_batch_holds_the_tokens_that_the_table_names(key: str) -> None:
    found = subject(key, None)
    shape = found.shape
    assert int((found.host["input_ids"] == 5).sum()) == shape.tokens
    few = int((found.few_host["input_ids"] == 5).sum())
    assert few == pytest.approx(shape.kept, rel=0.06)
    assert found.short == int(found.kept.sum())


# ways ------------------------------------------------------------------------------------------------------


def told(of: Subject, name: str) -> tuple[torch.Tensor, int]:
    how = way(name, of)
    batch, host = of.given(how.few)
    with how.ready() as attached, torch.no_grad():
        logits = forward_supervised(of.model, attached, batch, host).logits
    return logits, tokens_seen(of, how)


def test_each_way_sees_the_tokens_that_it_says() -> None:
    found = subject()
    seen = {name: told(found, name)[1] for name in WAYS}
    assert seen == {FULL: 576, NOTHING: 576, OURS: 64, USUAL: 68, EAGER: 64, MASKED: 64, PIXELS: 64}


@pytest.mark.parametrize("key", ["llava", "qwen3_vl"])
def test_masking_says_what_dropping_says_and_keep_all_what_full_tokens_say(key: str) -> None:
    found = subject(key)
    said = {name: told(found, name)[0] for name in (FULL, NOTHING, OURS, MASKED)}
    torch.testing.assert_close(said[MASKED], said[OURS], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(said[NOTHING], said[FULL], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(said[OURS], said[FULL], atol=1e-2)


def test_the_usual_choice_is_ours_made_slowly() -> None:
    found = subject()
    how = way(USUAL, found)
    with how.ready() as slow, torch.no_grad():
        forward_supervised(found.model, slow, *found.given(False))
    with attach(found.model, DART(keep=64, layer=LAYER, rule="paper"), output="compact") as ours, torch.no_grad():
        forward_supervised(found.model, ours, *found.given(False))
    assert slow is not None and slow.last is not None and ours.last is not None
    assert torch.equal(slow.last.mask, ours.last.mask)


def test_eager_scores_switch_the_kernel_and_put_it_back() -> None:
    found = subject()
    config = find_parts(found.model).text_config
    with way(EAGER, found).ready():
        assert config._attn_implementation == "eager"
    assert config._attn_implementation == "sdpa"


@pytest.mark.parametrize("key", SHAPES)
def test_fewer_pixels_run_and_leave_the_model_as_it_was(key: str) -> None:
    found = subject(key, None)
    side = found.model.config.to_dict()
    how = way(PIXELS, found)
    with how.ready(), torch.no_grad():
        output = found.model(**found.few, logits_to_keep=1)
    assert output.logits.isfinite().all() and found.model.config.to_dict() == side


# the bound -------------------------------------------------------------------------------------------------


def test_products_are_counted_with_what_they_read_and_write() -> None:
    a, b = torch.randn(8, 16), torch.randn(16, 32)
    work = count_ops(lambda: (a @ b).t(), DevicePeak(1e6, 1e3))
    assert work.flops == 2 * 8 * 16 * 32 and work.bytes == 4 * (8 * 16 + 16 * 32 + 8 * 32)
    assert work.seconds == work.bytes / 1e3


def test_attention_that_looks_back_counts_the_half_that_it_computes() -> None:
    q = torch.randn(1, 2, 64, 16)
    attend = torch.nn.functional.scaled_dot_product_attention
    whole = count_ops(lambda: attend(q, q, q), PEAK).flops
    assert whole == 4 * 2 * 64 * 64 * 16
    assert count_ops(lambda: attend(q, q, q, is_causal=True), PEAK).flops == whole / 2


@pytest.mark.parametrize("mode", ["lora", "full", None])
def test_the_bound_counts_short_layers_where_they_are_short(mode: Any) -> None:
    found = subject("llava", mode)
    training = mode is not None
    ideal = Ideal(OpCount(), lambda n: layer_work(found, n, PEAK, training), found.depth, found.length)
    saved = ideal.at(found.short)
    long, short = (layer_work(found, n, PEAK, training) for n in (found.length, found.short))
    assert saved.flops == pytest.approx((short.flops - long.flops) * (found.depth - 2)) and saved.flops < 0
    passes = {"lora": 2, "full": 3, None: 1}[mode]
    text = find_parts(found.model).text_config
    per_token = 2 * (4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size)
    attention = 2 * found.length * text.hidden_size * (3.5 if training else 1)
    expected = found.length * (per_token * passes + attention)
    assert long.flops == pytest.approx(expected, rel=0.25 if mode == "lora" else 0.05)


# memory ----------------------------------------------------------------------------------------------------


def test_the_peak_is_what_lies_there_at_once() -> None:
    def work() -> None:
        first = torch.ones(1000, 1000)
        second = first + 1
        del first
        second.sum()

    assert peak_memory(work, CPU) == pytest.approx(8e6, rel=0.01)


def test_the_cache_holds_its_true_share() -> None:
    found = subject("llava", None)
    sizes = {}
    for name in (FULL, OURS):
        answer = Answer.begun(found, way(name, found, "expand"))
        sizes[name] = answer.size()
        with way(name, found, "expand").ready():
            answer.more()
        assert kv_cache_bytes(answer.cache) > sizes[name]
        assert answer.tokens == {FULL: 576, OURS: 64}[name]
    assert sizes[OURS] / sizes[FULL] == pytest.approx(found.true_share, rel=1e-6)


# timing and tables -----------------------------------------------------------------------------------------


def test_what_surrounds_a_job_is_not_timed() -> None:
    happened: list[str] = []

    class Around(AbstractContextManager[None]):
        def __enter__(self) -> None:
            happened.append("in")

        def __exit__(self, *error: object) -> None:
            happened.append("out")

    job = WithContext(Around, lambda: happened.append("job"))
    assert time_once(job, CPU) >= 0 and happened == ["in", "job", "out"]
    first, times = rounds({"a": job}, CPU, 2, 10.0)
    assert set(first) == {"a"} and len(times["a"]) == 2


def test_ratios_are_taken_round_by_round() -> None:
    assert ratio([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == Timing(2.0, 2.0, 2.5, 3)


def test_goals_are_judged_by_what_was_measured_and_no_other() -> None:
    options = argparse.Namespace(device=CPU, scale=0.125, quick=False)
    same = Timing(0.995, 0.99, 1.0, 5)
    row = {"model": "LLaVA-1.5-7B", "trained": "LoRA, 4 rows", "way": NOTHING, "faster": same}
    table = goals.table_of([Table("Training step", {}, [row])], options)
    found = {row["goal"]: row for row in table.rows}
    kept = found["keep-all attached, time against the plain model"]
    assert kept["reached"] == "yes" and kept["measured"] == "1.01x" and kept["of"].endswith("LoRA, 4 rows")
    others = [row for row in table.rows if row["goal"] != kept["goal"]]
    assert {row["measured"] for row in others} == {"not measured"}


def test_a_step_moves_what_trains_and_nothing_else() -> None:
    found = subject_of(SHAPES["llava"], TINY, 1, CPU, torch.float32, "lora", answer=8)
    trainee = TrainStep(found)
    trainee.optimizer.param_groups[0]["lr"] = 1.0
    before = {name: weight.detach().clone() for name, weight in found.model.named_parameters()}
    how = way(OURS, found)
    with how.ready():
        trainee.step(how)()
    moved = {name for name, weight in found.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name, weight in found.model.named_parameters() if weight.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("bench", ["step", "prefill", "decode", "distill", "data", "ranks"])
def test_every_bench_runs_and_says_where(bench: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", bench, "--quick", "--device", "cpu", "--repeats", "1", "--modes", "lora", "--out", str(tmp_path)]
    assert main(argv[:2] + argv[2:]) == 0
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["facts"]["device"] and content["command"].startswith(f"python -m dart_train bench {bench}")
    titles = {"step": "Training step", "prefill": "Prefill", "decode": "Decode", "distill": "Distillation"}
    rows = content["tables"][titles.get(bench, bench.title())]["rows"]
    assert rows and all("failed" not in row for row in rows)
    if bench in ("step", "prefill"):
        assert [row["way"] for row in rows] == list(WAYS)
        ours = next(row for row in rows if row["way"] == OURS)
        assert ours["measured / bound"] == pytest.approx(ours["faster"]["median"] / ours["bound"])
        assert 1 < ours["bound"] < 9
    if bench in titles:
        assert "not measured" in (tmp_path / "bench.md").read_text()
    assert capsys.readouterr().out


def test_cpu_time_stands_still_while_others_run() -> None:
    clock = Clock()
    clock.count_cpu_time()
    begun = clock.read()
    time.sleep(0.2)
    assert clock.read() - begun < 0.15
