"""`bench select`: what the choice of tokens costs, beside one layer's forward and beside the usual code."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer, LlamaRotaryEmbedding

from ..profiling.selection_scene import HEAD, TEXT, SelectionScene, find_groups
from ..profiling.timing import Timing, Workload, host_syncs, interleaved
from ..reduction import REDUCERS, Reducer, from_config
from ..reduction.kept_tokens import KeptTokens
from .set_and_loop import plain_loops, set_and_loop
from .table import NOT_MEASURED, Row, Table, milliseconds, percent, times

FULL = {"tokens": (576, 1152, 2880), "batch": (1, 8), "width": (1024, 4096)}
QUICK = {"tokens": (64,), "batch": (1, 2), "width": (256,)}
KEPT = 9  # one token in so many: 576 -> 64, 2,880 -> 320
LAYER, USUAL, LOOPS = "one decoder layer", "set-and-loop", "plain loops"
READ = "reading states and keys once"
LAYOUT, GATHER = "any method: finding the tokens", "any method: gathering the states"


def add_options(parser: argparse.ArgumentParser) -> None:
    for name, numbers in FULL.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", help=f"default: {' '.join(map(str, numbers))}")
    parser.add_argument("--methods", nargs="+", default=list(REDUCERS), help="default: all of the registry")


def run(options: argparse.Namespace) -> list[Table]:
    repeats = min(options.repeats, 3) if options.quick else options.repeats
    rows: list[Row] = []
    for tokens, batch, width in product(*(_sizes(options, name) for name in FULL)):
        scene = SelectionScene.draw(tokens, batch, width, options.device, options.dtype)
        jobs = jobs_of(scene, options.methods)
        timings = interleaved(jobs, options.device, repeats, options.seconds)
        size = {"tokens": tokens, "batch": batch, "width": width}
        rows += [{**size, **row} for row in _rows(jobs, timings, options.device)]
    return [Table("Selection", COLUMNS, rows, NOTES)]


def _sizes(options: argparse.Namespace, name: str) -> tuple[int, ...]:
    given = getattr(options, name)
    sizes = tuple(given) if given else (QUICK if options.quick else FULL)[name]
    least = {"tokens": KEPT * 8, "batch": 1, "width": HEAD}[name] if given else 1
    wrong = [n for n in sizes if n < least or (name == "width" and n % HEAD)]
    if wrong:
        multiple = f", and a multiple of {HEAD}" if name == "width" else ""
        raise ValueError(f"--{name} {wrong[0]}: expected at least {least}{multiple}")
    return sizes


def jobs_of(scene: SelectionScene, methods: list[str]) -> dict[str, Workload]:
    keep = scene.tokens // KEPT
    jobs: dict[str, Workload] = {LAYER: _layer(scene)}
    cached = scene.keys.contiguous()  # the usual code takes its keys from the cache, which lies head by head
    jobs[USUAL] = lambda: set_and_loop(scene.states, cached, scene.scale, scene.tokens, keep)
    jobs[LOOPS] = lambda: plain_loops(scene.states, cached, scene.scale, scene.tokens, keep)
    for method in methods:
        jobs[method] = _selection(scene, from_config({"method": method, "keep": keep}))
    jobs[READ] = lambda: (scene.states.sum(), cached.sum())
    jobs[LAYOUT] = lambda: find_groups(scene.ids).to(scene.states.device)
    jobs[GATHER] = _gathering(scene, keep)
    return jobs


def _selection(scene: SelectionScene, reducer: Reducer) -> Workload:
    def select() -> object:
        view = scene.context(reducer)
        keep = reducer.select(view)
        return keep, reducer.merge_targets(view, keep)

    return torch.no_grad()(select)


def _gathering(scene: SelectionScene, keep: int) -> Workload:
    kept = torch.ones_like(scene.real)
    kept[:, keep : scene.tokens] = False
    counts = [keep + TEXT] * kept.shape[0]
    return lambda: KeptTokens.of(kept, counts).gather(scene.states)


def _layer(scene: SelectionScene) -> Workload:
    """As in LLaVA-1.5-7B at width 4096; other widths in proportion."""
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
        positions = torch.arange(scene.states.shape[1])[None]
        rotary = LlamaRotaryEmbedding(config)(scene.states, positions)
    return torch.no_grad()(lambda: layer(scene.states, position_embeddings=rotary))


def _rows(jobs: dict[str, Workload], timings: dict[str, Timing], device: torch.device) -> Iterator[dict[str, Any]]:
    for name, timing in timings.items():
        yield {
            "method": name,
            "times faster than set-and-loop": timings[USUAL].median / timing.median,
            "times faster than plain loops": timings[LOOPS].median / timing.median,
            "share of a layer": timing.median / timings[LAYER].median,
            "seconds": timing,
            "host synchronisations": host_syncs(jobs[name], device),
        }


def _ratio(row: Row, than: str) -> str:
    return "" if row["method"] in (LAYER, READ, LAYOUT, GATHER) else times(row[f"times faster than {than}"])


def _syncs(row: Row) -> str:
    number = row["host synchronisations"]
    return NOT_MEASURED if number is None else str(number)


COLUMNS = {
    "tokens": lambda row: str(row["tokens"]),
    "batch": lambda row: str(row["batch"]),
    "width": lambda row: str(row["width"]),
    "method": lambda row: row["method"],
    "faster than plain loops": lambda row: _ratio(row, LOOPS),
    "faster than set-and-loop": lambda row: _ratio(row, USUAL),
    "share of a layer": lambda row: percent(row["share of a layer"]),
    "ms, median [quartiles]": lambda row: milliseconds(row["seconds"]),
    "repeats": lambda row: str(row["seconds"].repeats),
    "host syncs": _syncs,
}
NOTES = (
    f"One token in {KEPT} is kept, of one picture before {TEXT} tokens of text; heads of {HEAD}. Random numbers: "
    "time does not depend on them.",
    "Methods that look at attention include the cost of the one row of it that they need.",
    f"{USUAL}: DART as released code writes it, one sample and one pivot at a time, with Python sets; "
    f"{LOOPS}: the same, token by token.",
    f"{READ}: the bound of any method that looks at both, such as DART.",
    f"{LAYER}: a LlamaDecoderLayer of this width (MLP 2.69 times as wide) on the full sequence, measured in the "
    "same run. 'First run': it took longer than --seconds, so there was no warm-up and no repeat.",
)
