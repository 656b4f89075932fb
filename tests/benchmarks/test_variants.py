"""The benches of complete models: each variant does what its name states, and the bound is the counted one."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dart_train import DART, attach
from dart_train.__main__ import main
from dart_train.benchmarks.baselines import (
    EAGER,
    FEWER_PIXELS,
    FULL,
    KEEP_ALL,
    MASKED,
    OURS,
    SET_LOOP,
    TOWER,
    TOWER_ON,
    VARIANTS,
    Variant,
    make_variants,
)
from dart_train.benchmarks.comparison import IdealCost, count_layer, tokens_after_reduction
from dart_train.benchmarks.inference import TOKENS, DecodeState
from dart_train.benchmarks.model_shapes import SHAPES, VIDEO, VIDEO_SHAPE
from dart_train.benchmarks.training_step import TrainStep
from dart_train.benchmarks.workloads import LAYER, BenchModel
from dart_train.models.structure import find_parts
from dart_train.profiling.device import DevicePeak
from dart_train.profiling.memory import kv_cache_bytes
from dart_train.profiling.op_count import OpCount
from dart_train.training.objective import forward_supervised
from data.scenes.page import draw_page

CPU = torch.device("cpu")
PEAK = DevicePeak(1e9, 1e9)
TINY = 0.03


@cache
def bench_model(key: str = "llava", mode: Any = "lora") -> BenchModel:
    return BenchModel.build(SHAPES[key], TINY, 1, CPU, torch.float32, mode, answer=8 if mode else 0)


@pytest.mark.parametrize("mode", ["lora", None])
def test_video_batch_is_one_that_the_model_reads(mode: Any) -> None:
    """Its tokens are as many as the frames make, and the reduction keeps its share of them."""
    bench = BenchModel.build(VIDEO_SHAPE, TINY, 2, CPU, torch.float32, mode, answer=8 if mode else 0)
    assert int((bench.host["input_ids"] == VIDEO).sum()) == 2 * 1152 and "pixel_values" not in bench.host
    variant = variant_of(OURS, bench, "expand")
    with torch.no_grad(), variant.active():
        bench.model(**bench.batch)
        assert tokens_after_reduction(bench, variant) == 128
    full = variant_of(FULL, bench)
    with full.active():
        assert tokens_after_reduction(bench, full) == 1152


def test_video_bench_counts_its_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "video", "--quick", "--modes", "lora", "--rows", "1", "--repeats", "1", "--seconds", "0.1"]
    assert main([*command, "--device", "cpu", "--out", str(tmp_path)]) == 0
    (table,) = json.loads((tmp_path / "bench.json").read_text())["tables"].values()
    rows = {row["way"]: row for row in table["rows"]}
    assert list(rows) == [FULL, KEEP_ALL, OURS, MASKED] and rows[KEEP_ALL]["bound"] == 1.0
    assert [row["visual tokens"] for row in rows.values()] == [1152, 1152, 128, 128]
    assert rows[OURS]["bound by FLOPs"] > 1.3  # of so narrow a model the tower takes most
    assert "a video of 16 frames of 336 x 336 pixels (1152 tokens)" in capsys.readouterr().out


def variant_of(name: str, bench: BenchModel, output: str = "compact") -> Variant:
    return make_variants(bench, output, (name,))[0]


@pytest.mark.parametrize(
    ("key", "width", "layers", "tower"),
    [
        ("llava", 4096, 32, 24),
        ("llava_next", 4096, 32, 24),
        ("qwen2_5_vl", 3584, 28, 32),
        ("qwen3_vl", 4096, 36, 27),
    ],
)
def test_shapes_at_scale_one_are_those_of_the_published_models(key: str, width: int, layers: int, tower: int) -> None:
    config = SHAPES[key].config(1.0)
    text, vision = config.get_text_config(), config.vision_config
    assert (text.hidden_size, text.num_hidden_layers) == (width, layers)
    assert getattr(vision, "num_hidden_layers", None) == tower or vision.depth == tower
    assert getattr(vision, "fullatt_block_indexes", [7, 15, 23, 31]) == [7, 15, 23, 31]
    assert getattr(vision, "deepstack_visual_indexes", [8, 16, 24]) == [8, 16, 24]


@pytest.mark.parametrize("key", SHAPES)
def test_batch_has_the_tokens_that_the_shape_names(key: str) -> None:
    bench = bench_model(key, None)
    assert int((bench.host["input_ids"] == 5).sum()) == bench.shape.tokens
    small = int((bench.small_host["input_ids"] == 5).sum())
    assert small == pytest.approx(bench.shape.kept, rel=0.06)
    assert bench.reduced_length == int(bench.kept.sum())


def logits_of(bench: BenchModel, name: str) -> tuple[torch.Tensor, int]:
    """(at supervised positions, visual tokens after layer K)."""
    variant = variant_of(name, bench)
    batch, host = bench.inputs(variant.small)
    with variant.active() as attached, torch.no_grad():
        logits = forward_supervised(bench.model, attached, batch, host).logits
    return logits, tokens_after_reduction(bench, variant)


def test_each_variant_has_the_tokens_that_it_reports() -> None:
    found = {name: logits_of(bench_model(), name)[1] for name in VARIANTS}
    kept = {FULL: 576, KEEP_ALL: 576, OURS: 64, SET_LOOP: 68, EAGER: 64, MASKED: 64, FEWER_PIXELS: 64}
    assert found == {**kept, TOWER: 64, TOWER_ON: 576}


@pytest.mark.parametrize("key", ["llava", "qwen3_vl"])
def test_masking_equals_dropping_and_keep_all_equals_full_tokens(key: str) -> None:
    bench = bench_model(key)
    logits = {name: logits_of(bench, name)[0] for name in (FULL, KEEP_ALL, OURS, MASKED)}
    torch.testing.assert_close(logits[MASKED], logits[OURS], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits[KEEP_ALL], logits[FULL], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(logits[OURS], logits[FULL], atol=1e-2)


def test_set_and_loop_variant_keeps_what_dart_keeps() -> None:
    bench = bench_model()
    variant = variant_of(SET_LOOP, bench)
    with variant.active() as slow, torch.no_grad():
        forward_supervised(bench.model, slow, *bench.inputs(False))
    with attach(bench.model, DART(keep=64, layer=LAYER, rule="paper"), output="compact") as ours, torch.no_grad():
        forward_supervised(bench.model, ours, *bench.inputs(False))
    assert slow is not None and slow.last is not None and ours.last is not None
    assert torch.equal(slow.last.mask, ours.last.mask)


def test_eager_variant_switches_the_kernel_and_restores_it() -> None:
    bench = bench_model()
    config = find_parts(bench.model).text_config
    with variant_of(EAGER, bench).active():
        assert config._attn_implementation == "eager"
    assert config._attn_implementation == "sdpa"


@pytest.mark.parametrize("key", SHAPES)
def test_fewer_pixels_variant_restores_the_config(key: str) -> None:
    bench = bench_model(key, None)
    before = bench.model.config.to_dict()
    with variant_of(FEWER_PIXELS, bench).active(), torch.no_grad():
        output = bench.model(**bench.small, logits_to_keep=1)
    assert output.logits.isfinite().all() and bench.model.config.to_dict() == before


@pytest.mark.parametrize("mode", ["lora", "full", None])
def test_bound_counts_reduced_layers_at_their_length(mode: Any) -> None:
    bench, training = bench_model("llava", mode), mode is not None
    saved = IdealCost(OpCount(), bench, PEAK, training).at(bench.reduced_length)
    long, short = (count_layer(bench, n, PEAK, training) for n in (bench.length, bench.reduced_length))
    assert saved.flops == pytest.approx((short.flops - long.flops) * (bench.depth - 2)) and saved.flops < 0
    passes = {"lora": 2, "full": 3, None: 1}[mode]
    text = find_parts(bench.model).text_config
    per_token = 2 * (4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size)
    attention = 2 * bench.length * text.hidden_size * (3.5 if training else 1)
    expected = bench.length * (per_token * passes + attention)
    assert long.flops == pytest.approx(expected, rel=0.25 if mode == "lora" else 0.05)


def test_kv_cache_has_the_share_of_positions_that_remain() -> None:
    bench = bench_model("llava", None)
    sizes = {}
    for name in (FULL, OURS):
        variant = variant_of(name, bench, "expand")
        state = DecodeState.from_prefill(bench, variant)
        sizes[name] = kv_cache_bytes(state.cache)
        with variant.active():
            state.decode_tokens()
        assert kv_cache_bytes(state.cache) > sizes[name]
        assert state.visual_tokens == {FULL: 576, OURS: 64}[name]
    assert sizes[OURS] / sizes[FULL] == pytest.approx(bench.position_share, rel=1e-6)


def test_caches_that_are_cut_by_hand_are_as_long_as_reduced_ones_and_every_round_starts_from_the_same() -> None:
    bench = bench_model("llava", None)
    ours = variant_of(OURS, bench, "expand")
    reduced, cut = (DecodeState.from_prefill(bench, variant) for variant in (ours, variant_of(FULL, bench)))
    cut = cut.cut(bench)
    assert [keys.shape for keys, _ in cut.prefilled] == [keys.shape for keys, _ in reduced.prefilled]
    for _ in range(2):
        cut.decode_tokens()
        grown = zip(cut.cache.layers, cut.prefilled, strict=True)
        assert {layer.keys.shape[2] - keys.shape[2] for layer, (keys, _) in grown} == {TOKENS}


def test_tower_bench_on_a_page_counts_the_units_that_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_page(504, 504).save(tmp_path / "page.png")
    argv = ["bench", "tower", "--image", str(tmp_path / "page.png"), "--quick", "--device", "cpu", "--repeats", "1"]
    assert main([*argv, "--models", "llava", "--out", str(tmp_path)]) == 0
    entire, distinct = json.loads((tmp_path / "bench.json").read_text())["tables"]["Vision tower"]["rows"]
    assert entire["units left"] == 1 and 0.4 < distinct["units left"] < 0.9 and distinct["bound"] > 1
    with pytest.raises(SystemExit):
        main(["bench", "tower"])
    assert main(["bench", "tower", "--image", str(tmp_path / "none.png")]) != 0
    capsys.readouterr()


def test_train_step_updates_what_trains_and_nothing_else() -> None:
    bench = BenchModel.build(SHAPES["llava"], TINY, 1, CPU, torch.float32, "lora", answer=8)
    trainer = TrainStep(bench)
    trainer.optimizer.param_groups[0]["lr"] = 1.0
    before = {name: weight.detach().clone() for name, weight in bench.model.named_parameters()}
    variant = variant_of(OURS, bench)
    with variant.active():
        trainer.step(variant)
    changed = {name for name, weight in bench.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name, weight in bench.model.named_parameters() if weight.requires_grad}


TITLES = {"step": "Training step", "prefill": "Prefill", "decode": "Decode", "distill": "Distillation"}


@pytest.mark.slow
@pytest.mark.parametrize("bench", [*TITLES, "data", "ranks"])
def test_every_bench_command(bench: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", bench, "--quick", "--device", "cpu", "--repeats", "1", "--modes", "lora", "--out", str(tmp_path)]
    assert main(argv) == 0
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["facts"]["device"] and content["command"].startswith(f"python -m dart_train bench {bench}")
    rows = content["tables"][TITLES.get(bench, bench.title())]["rows"]
    assert rows and all("failed" not in row for row in rows)
    if bench in ("step", "prefill"):
        assert [row["way"] for row in rows] == list(VARIANTS)
        ours = next(row for row in rows if row["way"] == OURS)
        assert ours["measured / bound"] == pytest.approx(ours["faster"]["median"] / ours["bound"])
        assert 1 < ours["bound"] < 9
    assert capsys.readouterr().out
