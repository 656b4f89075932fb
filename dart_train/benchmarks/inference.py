"""`bench prefill` and `bench decode`: from pixels to the first token; then a token of an answer, and its KV cache."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..hooks.transformers_compat import cache_argument, cache_in_output
from ..profiling.device import DevicePeak
from ..profiling.memory import kv_cache_bytes
from ..profiling.op_count import count_ops
from ..profiling.timing import Workload
from .baselines import FEWER_PIXELS, FULL, KEEP_ALL, OURS, TOWER_ON, Variant, make_variants
from .cli import scale_of
from .comparison import (
    COLUMNS,
    NO_GAIN,
    NOTES,
    Bound,
    IdealCost,
    compare_variants,
    each_shape,
    tokens_after_reduction,
)
from .model_shapes import ModelShape
from .table import BenchTable, Row, percent
from .workloads import LAYER, PROMPT_AFTER, PROMPT_BEFORE, BenchModel

TOKENS = 24  # decoded in each round
CUT = "plain model, caches cut by hand"
DECODE_VARIANTS = (FULL, KEEP_ALL, TOWER_ON, OURS, FEWER_PIXELS)


def bench_prefill(options: argparse.Namespace) -> BenchTable:
    text = (
        f"One row: {PROMPT_BEFORE} tokens, one image, {PROMPT_AFTER} tokens; logits of the last. The cache is filled."
    )
    return BenchTable("Prefill", COLUMNS, each_shape(options, measure_prefill), [text, *NOTES])


def measure_prefill(shape: ModelShape, peak: DevicePeak, options: argparse.Namespace) -> list[dict[str, Any]]:
    bench = BenchModel.build(shape, scale_of(options), 1, options.device, options.dtype)
    variants = make_variants(bench, "expand", options.ways)
    full = prefill_job(bench, make_variants(bench, "expand", (FULL,))[0])
    bounds = IdealCost.of(bench, full, peak, training=False).bounds()
    return compare_variants(
        bench, variants, lambda variant: prefill_job(bench, variant), bounds, options, f"{shape.key} prefill"
    )


def prefill_job(bench: BenchModel, variant: Variant) -> Workload:
    batch = bench.inputs(variant.small)[0]
    return torch.no_grad()(lambda: bench.model(**batch, use_cache=True, logits_to_keep=1))


def bench_decode(options: argparse.Namespace) -> BenchTable:
    return BenchTable("Decode", DECODE_COLUMNS, each_shape(options, measure_decode), DECODE_NOTES)


def measure_decode(shape: ModelShape, peak: DevicePeak, options: argparse.Namespace) -> list[dict[str, Any]]:
    bench = BenchModel.build(shape, scale_of(options), 1, options.device, options.dtype)
    variants = make_variants(bench, "expand", DECODE_VARIANTS)
    states = {variant.name: DecodeState.from_prefill(bench, variant) for variant in variants}
    variants.append(Variant(CUT, ExitStack))
    states[CUT] = states[FULL].cut(bench)
    sizes = {name: kv_cache_bytes(state.cache) for name, state in states.items()}
    bound = _decode_bound(states, variants, peak)
    bounds = {OURS: bound, CUT: bound, KEEP_ALL: NO_GAIN, TOWER_ON: NO_GAIN}
    found = compare_variants(
        bench, variants, lambda variant: states[variant.name].decode_tokens, bounds, options, f"{shape.key} decode"
    )
    reachable = next((row["faster"] for row in found if row["way"] == CUT), None)
    for row in found:
        row["visual tokens"] = states[row["way"]].visual_tokens
        row |= {"cache bytes": sizes[row["way"]], "share": sizes[row["way"]] / sizes[FULL]}
        row["true share"] = bench.position_share if row["way"] == OURS else None
        if row["way"] == OURS and reachable is not None and row.get("faster") is not None:
            row["of plain"] = row["faster"].median / reachable.median
    return found


class DecodeState:
    """A sequence that continues from a prefilled cache; every round starts from the same one."""

    def __init__(self, bench: BenchModel, cache: Any, token: Tensor, visual_tokens: int) -> None:
        """token [1, 1]: the first one; visual_tokens: after layer K."""
        self.bench, self.cache, self.token, self.visual_tokens = bench, cache, token, visual_tokens
        self.argument = cache_argument(bench.model.forward)
        self.prefilled = [(layer.keys, layer.values) for layer in cache.layers]

    @classmethod
    @torch.no_grad()
    def from_prefill(cls, bench: BenchModel, variant: Variant) -> DecodeState:
        with variant.active():
            output = bench.model(**bench.inputs(variant.small)[0], use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
            return cls(bench, cache_in_output(output), token, tokens_after_reduction(bench, variant))

    def cut(self, bench: BenchModel) -> DecodeState:
        """The same with the last tokens alone in the caches of layers >= K, as many as a reduction leaves: what any
        implementation can reach, since the plain model then runs without a hook."""
        cache = copy.deepcopy(self.cache)
        for layer in cache.layers[LAYER:]:
            layer.keys, layer.values = (x[:, :, -bench.reduced_length :].clone() for x in (layer.keys, layer.values))
        return DecodeState(bench, cache, self.token, bench.shape.kept)

    @torch.no_grad()
    def decode_tokens(self) -> None:
        """TOKENS more, always the same one: time does not depend on which."""
        for layer, (keys, values) in zip(self.cache.layers, self.prefilled, strict=True):
            layer.keys, layer.values = keys, values
        for _ in range(TOKENS):
            self.bench.model(input_ids=self.token, use_cache=True, **{self.argument: self.cache})


def _decode_bound(states: Mapping[str, DecodeState], variants: Sequence[Variant], peak: DevicePeak) -> Bound:
    """Both are counted: a token runs the same operations over a full cache and over a reduced one."""
    counts = {}
    for variant in variants:
        if variant.name in (FULL, OURS):
            with variant.active():
                counts[variant.name] = count_ops(states[variant.name].decode_tokens, peak)
    return Bound.of(counts[FULL], counts[OURS])


def _cache_text(row: Row) -> str:
    text = percent(row["share"]) if "share" in row else ""
    return text + (f" (positions that remain: {percent(row['true share'])})" if row.get("true share") else "")


_CACHE_COLUMNS: dict[str, Any] = {
    "cache, of full": _cache_text,
    "cache, MB": lambda row: f"{row['cache bytes'] / 1e6:.3g}" if "cache bytes" in row else "",
}
DECODE_COLUMNS: dict[str, Any] = {
    **{name: COLUMNS[name] for name in list(COLUMNS)[:6]},
    "of the plain model with caches cut": lambda row: percent(row["of plain"]) if "of plain" in row else "",
    **_CACHE_COLUMNS,
    **{name: COLUMNS[name] for name in ("ms, median [quartiles]", "repeats")},
}
DECODE_NOTES = (
    f"One row; times are of {TOKENS} tokens, in every round the same. Faster: against full tokens, round by round. "
    "Cache: bytes of its storages after the prefill, as allocated.",
    "Bound: the operations of a token counted over a full cache and over a reduced one, each at the slower of the "
    "FLOPs and bytes a second that this device reached: weights and caches read, and caches copied as they grow.",
    f"{CUT}: full tokens, and then only as many tokens in the caches of layers >= {LAYER} as DART keeps; no hook runs. "
    "What it lacks to the bound is time that does not depend on the cache: Python, and the start of each operation, "
    "which the bound does not count.",
    f"Positions that remain: layers 0 to {LAYER - 1} at full length, the others reduced, of all layers at full length. "
    "Tokens that are only masked stay in a cache.",
)
