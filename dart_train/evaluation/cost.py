"""What answering costs: latency of full tokens and every reduction in interleaved rounds, memory, KV bytes, FLOPs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ..config import Recipe
from ..hooks.transformers_compat import cache_in_output
from ..models.structure import unwrap_model
from ..profiling.flops import flop_rates, patches_in
from ..profiling.memory import kv_cache_bytes, peak_memory
from ..profiling.timing import Timing, WithContext, Workload, ratio, rounds
from .comparison_grid import ComparisonCell
from .generate import GenerationContext, LoadedCheckpoint, TokenTimestamps
from .questions import Question

MAX_SECONDS = 60.0  # for all repeats of one phase of one cell
PHASES = ("prefill", "first_token", "total")
# As a merged model answers: no adapters; the vision tower and the projector run forward only.
_FORWARD_MODES = {"vision": "frozen", "projector": "frozen", "language": "full"}


@dataclass(frozen=True)
class CellCost:
    """The cost of one batch, in seconds. prefill: the forward over the prompt with the vision tower; first_token:
    `generate` up to its first token; total: up to `new_tokens` of them; decode: from one token to the next.

    faster_*: full tokens' time over this cell's, of the same round. flops: of the prefill. bound: full tokens' FLOPs
    over this cell's, the largest speed-up of the prefill that its FLOPs allow.
    """

    checkpoint: str
    method: str
    budget: str
    rows: int
    prompt_tokens: int
    visual_tokens: int
    kept: int
    new_tokens: int
    prefill: Timing
    first_token: Timing
    decode: Timing
    total: Timing
    faster_prefill: Timing
    faster_first_token: Timing
    faster_total: Timing
    peak_bytes: int
    kv_bytes: int
    flops: float
    bound: float

    @property
    def cell(self) -> tuple[str, str, str]:
        return (self.checkpoint, self.method, self.budget)


@dataclass(frozen=True)
class PrefillShape:
    """length: of the padded prompt. stages: (layer, padded length); the decoder runs from `layer` on with that length.
    visual: visual tokens before the reduction. tower_share: of the work of the vision tower's blocks."""

    rows: int
    length: int
    stages: tuple[tuple[int, int], ...]
    visual: int
    tower_share: float = 1.0

    def layer_lengths(self, layers: int) -> list[int]:
        lengths = [self.length] * layers
        for layer, length in self.stages:
            lengths[layer:] = [length] * (layers - layer)
        return lengths


class PrefillFlops:
    """FLOPs of a model's prefill from its shape. batch: any inputs with images or videos; visual: their
    visual tokens."""

    def __init__(self, model: Any, batch: Mapping[str, Any], visual: int) -> None:
        plain = unwrap_model(model)
        given = [batch[name] for name in ("pixel_values", "pixel_values_videos") if batch.get(name) is not None]
        patches = sum(patches_in(pixels, plain.config) for pixels in given) / visual if visual else 0.0
        self.rates = flop_rates(plain, _FORWARD_MODES, gradient_checkpointing=False, patches_per_token=patches)
        self.text = plain.config.get_text_config()

    def of(self, shape: PrefillShape) -> float:
        """Vision tower, decoder layers at their own lengths, and one position of the head for each row."""
        lengths = Counter(shape.layer_lengths(self.text.num_hidden_layers))
        layers = sum(n * float(self.rates.forward(shape.rows, length)) for length, n in lengths.items())
        head = 2 * shape.rows * self.text.hidden_size * self.text.vocab_size
        projector = self.rates.projector
        tower = projector + (self.rates.tower - projector) * shape.tower_share
        return float(np.asarray(layers + head + tower * shape.visual))


def measure_costs(
    checkpoint: LoadedCheckpoint, cells: Sequence[ComparisonCell], questions: Sequence[Question], recipe: Recipe
) -> list[CellCost]:
    """cells: of this checkpoint, full tokens first; the others are compared with it."""
    config = recipe.compare
    batch = representative_questions(questions, config.timing_batch_size)
    new_tokens = max(2, config.max_new_tokens)
    timed = [TimedCell(checkpoint, cell, batch) for cell in cells]
    workloads: dict[str, Workload] = {
        f"{number} {phase}": WithContext(lambda each=each: each, partial(each.run, phase, new_tokens))  # type: ignore[misc]
        for phase in PHASES
        for number, each in enumerate(timed)
    }
    title = f"timing {cells[0].checkpoint}"
    first, later = rounds(workloads, checkpoint.device, config.timing_repeats, MAX_SECONDS, title)
    seconds = {name: later[name] or [first[name]] for name in workloads}
    full = {phase: seconds[f"0 {phase}"] for phase in PHASES}
    flops = PrefillFlops(checkpoint.model, timed[0].host_batch, timed[0].visual)
    costs: list[CellCost] = []
    for number, each in enumerate(timed):
        own = {phase: seconds[f"{number} {phase}"] for phase in PHASES}
        peak_bytes, kv_bytes, shape, kept = each.measure_memory()
        cell_flops = flops.of(shape)
        costs.append(
            CellCost(
                checkpoint=each.cell.checkpoint,
                method=each.cell.method,
                budget=each.cell.budget,
                rows=shape.rows,
                prompt_tokens=shape.length,
                visual_tokens=timed[0].visual,
                kept=kept,
                new_tokens=new_tokens,
                decode=Timing.of(each.token_seconds[1:] or each.token_seconds),  # the first run is the warm-up
                **{phase: Timing.of(own[phase]) for phase in PHASES},
                **{f"faster_{phase}": ratio(full[phase], own[phase]) for phase in PHASES},
                peak_bytes=peak_bytes,
                kv_bytes=kv_bytes,
                flops=cell_flops,
                bound=(costs[0].flops if costs else cell_flops) / cell_flops,
            )
        )
    return costs


def representative_questions(questions: Sequence[Question], number: int) -> list[Question]:
    """Questions with images or videos, of about the median length."""
    with_images = [question for question in questions if question.refs and len(question.turns) == 1]
    with_images = with_images or [question for question in questions if question.refs and not question.prefilled]
    by_length = sorted(with_images, key=lambda question: question.cost_order) or list(questions)
    start = max(0, (len(by_length) - number) // 2)
    return by_length[start : start + number]


class TimedCell:
    """The batch of one cell. As a context manager it activates the cell's reduction; neither that nor the processing
    of the images is timed."""

    def __init__(self, checkpoint: LoadedCheckpoint, cell: ComparisonCell, questions: Sequence[Question]) -> None:
        self.checkpoint, self.cell = checkpoint, cell
        with checkpoint.reduced(cell) as context:
            self.host_batch = context.encoder.batch(questions)
            self.visual = sum(context.encoder.visual_tokens(self.host_batch["input_ids"]))
        self.batch = checkpoint.to_device(self.host_batch)
        self.token_seconds: list[float] = []  # mean seconds of a token in each complete generation

    def __enter__(self) -> GenerationContext:
        self._reduced = self.checkpoint.reduced(self.cell)
        self.context = self._reduced.__enter__()
        return self.context

    def __exit__(self, *exception: Any) -> None:
        self._reduced.__exit__(*exception)

    def run(self, phase: str, new_tokens: int) -> object:
        if phase == "prefill":
            return self._prefill()
        number, timestamps = 1 if phase == "first_token" else new_tokens, TokenTimestamps()
        with torch.inference_mode():
            generated = self.context.generate(self.batch, number, number, timestamps)
        if phase == "total":
            self.token_seconds.append(timestamps.seconds_per_token())
        return generated

    def measure_memory(self) -> tuple[int, int, PrefillShape, int]:
        """Measures the prefill: peak bytes, KV bytes, its shape and the number of visual tokens kept."""
        with self:
            output = self._prefill()
            shape, kept = self._shape()
            kv_bytes = kv_cache_bytes(cache_in_output(output))
            del output
            return peak_memory(self._prefill, self.checkpoint.device), kv_bytes, shape, kept

    @torch.inference_mode()
    def _prefill(self) -> Any:
        return self.context.model(**self.batch, use_cache=True, logits_to_keep=1)

    def _shape(self) -> tuple[PrefillShape, int]:
        rows, length = self.host_batch["input_ids"].shape
        attached = self.context.attached
        last, share = (None, 1.0) if attached is None else (attached.last, attached.tower_share)
        if last is None:
            return PrefillShape(rows, length, (), self.visual, share), self.visual
        lengths = [int(mask.sum(1).max()) for mask in last.stages]
        stages = tuple(zip((stage.layer for stage in self.cell.stages), lengths, strict=True))
        return PrefillShape(rows, length, stages, self.visual, share), sum(last.visual_after)
