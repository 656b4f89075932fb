"""`bench select`: what the selection of tokens costs, next to one layer's forward and to the usual code."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer, LlamaRotaryEmbedding

from ..profiling.selection_scene import HEAD, TEXT, SelectionScene, find_groups
from ..profiling.timing import Timing, Workload, host_syncs, interleaved
from ..reduction import Reducer, from_config
from ..reduction.kept_tokens import KeptTokens
from .baselines import plain_loops, set_and_loop
from .cli import SELECT_SIZES
from .table import NOT_MEASURED, BenchTable, Row, milliseconds, percent, times

QUICK_SIZES = {"tokens": (64,), "batch": (1, 2), "width": (256,)}
KEPT = 9  # one token in so many: 576 -> 64, 2,880 -> 320
LAYER, USUAL, LOOPS = "one decoder layer", "set-and-loop", "plain loops"
SHORT_LAYER = "one decoder layer on the kept tokens"
LAYERS, BEFORE = 32, 2  # of LLaVA-1.5-7B, and those before the selection
READ = "reading states and keys once"
LAYOUT, GATHER = "any method: finding the tokens", "any method: gathering the states"


def bench_select(options: argparse.Namespace) -> BenchTable:
    repeats = min(options.repeats, 3) if options.quick else options.repeats
    rows: list[Row] = []
    for tokens, batch, width in product(*(_sizes(options, name) for name in SELECT_SIZES)):
        scene = SelectionScene.draw(tokens, batch, width, options.device, options.dtype)
        workloads = make_workloads(scene, options.methods)
        timings = interleaved(workloads, options.device, repeats, options.seconds)
        size = {"tokens": tokens, "batch": batch, "width": width}
        rows += [{**size, **row} for row in _rows(workloads, timings, options.device)]
    return BenchTable("Selection", COLUMNS, rows, NOTES)


def _sizes(options: argparse.Namespace, name: str) -> tuple[int, ...]:
    given = getattr(options, name)
    if not given:
        return (QUICK_SIZES if options.quick else SELECT_SIZES)[name]
    least = {"tokens": KEPT * 8, "batch": 1, "width": HEAD}[name]
    wrong = [n for n in given if n < least or (name == "width" and n % HEAD)]
    if wrong:
        multiple = f", and a multiple of {HEAD}" if name == "width" else ""
        raise ValueError(f"--{name} {wrong[0]}: expected at least {least}{multiple}")
    return tuple(given)


def make_workloads(scene: SelectionScene, methods: list[str]) -> dict[str, Workload]:
    keep = scene.tokens // KEPT
    # Released code takes its keys from the cache, where every head is contiguous.
    keys = scene.keys.contiguous()
    return {
        LAYER: _layer(scene, scene.states.shape[1]),
        SHORT_LAYER: _layer(scene, scene.states.shape[1] - scene.tokens + keep),
        USUAL: lambda: set_and_loop(scene.states, keys, scene.scale, scene.tokens, keep),
        LOOPS: lambda: plain_loops(scene.states, keys, scene.scale, scene.tokens, keep),
        **{method: _selection(scene, from_config({"method": method, "keep": keep})) for method in methods},
        READ: lambda: (scene.states.sum(), keys.sum()),
        LAYOUT: lambda: find_groups(scene.ids).to(scene.states.device),
        GATHER: _gathering(scene, keep),
    }


def _selection(scene: SelectionScene, reducer: Reducer) -> Workload:
    def select() -> object:
        context = scene.context(reducer)
        keep = reducer.select(context)
        return keep, reducer.merge_targets(context, keep)

    return torch.no_grad()(select)


def _gathering(scene: SelectionScene, keep: int) -> Workload:
    kept = torch.ones_like(scene.real)
    kept[:, keep : scene.tokens] = False
    counts = [keep + TEXT] * kept.shape[0]
    return lambda: KeptTokens.of(kept, counts).gather(scene.states)


def _layer(scene: SelectionScene, length: int) -> Workload:
    """On the first `length` states. As in LLaVA-1.5-7B at width 4096; other widths in proportion."""
    width = scene.states.shape[-1]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11008 // 4096,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD,
        attn_implementation="sdpa",
    )
    device, dtype = scene.states.device, scene.states.dtype
    with torch.device(device):
        layer = LlamaDecoderLayer(config, 0).to(dtype).eval()
        states = scene.states[:, :length].contiguous()
        rotary = LlamaRotaryEmbedding(config)(states, torch.arange(length)[None])
    return torch.no_grad()(lambda: layer(states, position_embeddings=rotary))


def _rows(workloads: dict[str, Workload], timings: dict[str, Timing], device: torch.device) -> Iterator[dict[str, Any]]:
    full, short = timings[LAYER].median, timings[SHORT_LAYER].median
    prefill = BEFORE * full + (LAYERS - BEFORE) * short
    for name, timing in timings.items():
        yield {
            "method": name,
            "times faster than set-and-loop": timings[USUAL].median / timing.median,
            "times faster than plain loops": timings[LOOPS].median / timing.median,
            "share of a layer": timing.median / full,
            "share of a prefill": timing.median / (prefill + timing.median),
            "seconds": timing,
            "host synchronisations": host_syncs(workloads[name], device),
        }


def _faster(row: Row, than: str) -> str:
    return (
        "" if row["method"] in (LAYER, SHORT_LAYER, READ, LAYOUT, GATHER) else times(row[f"times faster than {than}"])
    )


def _syncs(row: Row) -> str:
    number = row["host synchronisations"]
    return NOT_MEASURED if number is None else str(number)


COLUMNS = {
    "tokens": lambda row: str(row["tokens"]),
    "batch": lambda row: str(row["batch"]),
    "width": lambda row: str(row["width"]),
    "method": lambda row: row["method"],
    "faster than plain loops": lambda row: _faster(row, LOOPS),
    "faster than set-and-loop": lambda row: _faster(row, USUAL),
    "share of a layer": lambda row: percent(row["share of a layer"]),
    "share of a reduced prefill": lambda row: percent(row["share of a prefill"]),
    "ms, median [quartiles]": lambda row: milliseconds(row["seconds"]),
    "repeats": lambda row: str(row["seconds"].repeats),
    "host syncs": _syncs,
}
NOTES = (
    f"One token in {KEPT} is kept, of one image before {TEXT} tokens of text; heads of {HEAD}. Random states and keys: "
    "time does not depend on them.",
    "Methods that use attention include the cost of the one row of it that they need.",
    f"{USUAL}: DART as released code writes it, one sample and one pivot at a time, with Python sets; "
    f"{LOOPS}: the same, token by token.",
    f"{READ}: the least time of any method that uses both, such as DART.",
    f"{LAYER}: a LlamaDecoderLayer of this width (MLP 2.69 times as wide) on the full sequence, measured in the "
    f"same run. Reduced prefill: {BEFORE} layers on the full sequence, {LAYERS - BEFORE} on the kept tokens, and the "
    "selection; without the vision tower and the head, so that the share is an upper bound. 'First run': "
    "it took longer than --seconds, so there was no warm-up and no repeat.",
)
