"""What answering costs, by the clock: full tokens and every reduction in turn, round after round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Recipe
from ..hooks.transformers_compat import cache_in_output
from ..models.structure import unwrap
from ..profiling.flops import flop_rates, patches_in
from ..profiling.memory import kv_cache_bytes, peak_memory
from ..profiling.timing import Timing, WithContext, Workload, ratio, rounds
from .comparison_grid import Cell
from .generate import Asked, Subject, TokenTimestamps
from .questions import Question

# FLOPs of a prompt, from its token counts: the speed-up that fewer tokens allow at most.

# No adapters, as they are merged; a frozen tower is one that goes forward only.
_MODES = {"vision": "frozen", "projector": "frozen", "language": "full"}


@dataclass(frozen=True)
class Shape:
    """Of one prefill: rows, the padded length that comes in, visual tokens; steps: of each stage its layer, the first
    to run on that stage's padded length."""

    rows: int
    length: int
    steps: tuple[tuple[int, int], ...]
    visual: int

    def lengths(self, layers: int) -> list[int]:
        """Of every layer."""
        found = [self.length] * layers
        for layer, length in self.steps:
            found[layer:] = [length] * (layers - layer)
        return found


class Arithmetic:
    """Of one model; `batch`: any that has pictures."""

    def __init__(self, model: Any, batch: dict[str, Any], visual: int) -> None:
        plain = unwrap(model)
        pixels = batch.get("pixel_values")
        patches = patches_in(pixels, plain.config) / visual if isinstance(pixels, torch.Tensor) and visual else 0.0
        self.rates = flop_rates(plain, _MODES, gradient_checkpointing=False, patches_per_token=patches)
        self.text = plain.config.get_text_config()

    def prefill(self, shape: Shape) -> float:
        """Vision tower, decoder layers at the length that each runs on, and one place of the head for each row."""
        lengths = Counter(shape.lengths(self.text.num_hidden_layers))
        cost = sum(n * float(self.rates.forward(shape.rows, length)) for length, n in lengths.items())
        head = 2 * shape.rows * self.text.hidden_size * self.text.vocab_size
        return float(np.asarray(cost + head + self.rates.tower * shape.visual))


SECONDS = 60.0  # for all repeats of one call
STEPS = ("prefill", "first_token", "total")


@dataclass(frozen=True)
class Cost:
    """Seconds of one batch. prefill: the forward over the prompt, vision tower included; first_token: `generate` until
    its first token; total: until `new_tokens` of them; decode: from one of these to the next. faster: how many times as
    fast as full tokens, of the same round. bound: what the FLOPs of the prefill allow at most."""

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


def costs(subject: Subject, cells: Sequence[Cell], questions: Sequence[Question], recipe: Recipe) -> list[Cost]:
    """The first of `cells` is full tokens, which the others are held against."""
    say = recipe.compare
    asked = typical(questions, say.timing_batch_size)
    new = max(2, say.max_new_tokens)
    stages = [Stage(subject, cell, asked) for cell in cells]
    jobs: dict[str, Workload] = {
        f"{number} {step}": WithContext(lambda stage=stage: stage, partial(stage.run, step, new))  # type: ignore[misc]
        for step in STEPS
        for number, stage in enumerate(stages)
    }
    first, times = rounds(jobs, subject.device, say.timing_repeats, SECONDS, f"timing {cells[0].checkpoint}")
    seconds = {name: times[name] or [first[name]] for name in jobs}
    return _summed(stages, Arithmetic(subject.model, *stages[0].counted()), seconds, new)


def typical(questions: Sequence[Question], number: int) -> list[Question]:
    """Those with pictures, and of them the ones of middle length."""
    seen = sorted((q for q in questions if q.refs), key=lambda q: (len(q.refs), len(q.text))) or list(questions)
    start = max(0, (len(seen) - number) // 2)
    return seen[start : start + number]


class Stage:
    """A cell's batch. Within, its reduction is on; neither that nor reading the pictures is timed."""

    def __init__(self, subject: Subject, cell: Cell, questions: Sequence[Question]) -> None:
        self.subject, self.cell = subject, cell
        with subject.at(cell) as asked:
            self.host = asked.prompts.batch(questions)
            self.visual = sum(asked.prompts.visual_tokens(self.host["input_ids"]))
        self.batch = subject.moved(self.host)
        self.decoding: list[float] = []  # seconds of a token, of each run until all are written

    def __enter__(self) -> Asked:
        self.context = self.subject.at(self.cell)
        self.asked = self.context.__enter__()
        return self.asked

    def __exit__(self, *exception: Any) -> None:
        self.context.__exit__(*exception)

    def run(self, step: str, new: int) -> object:
        if step == "prefill":
            return self.prefill()
        most, ticks = 1 if step == "first_token" else new, TokenTimestamps()
        with torch.inference_mode():
            made = self.asked.generate(self.batch, most, most, ticks)
        if step == "total":
            self.decoding.append(ticks.apart())
        return made

    @torch.inference_mode()
    def prefill(self) -> Any:
        return self.asked.model(**self.batch, use_cache=True, logits_to_keep=1)

    def counted(self) -> tuple[dict[str, Tensor], int]:
        return self.host, self.visual

    def weighed(self) -> tuple[int, int, Shape, int]:
        """Peak bytes, KV bytes, and of the prefill its shape and how many visual tokens stay."""
        with self:
            output = self.prefill()
            shape, kept = self._shape()
            kv = kv_cache_bytes(cache_in_output(output))
            del output
            return peak_memory(self.prefill, self.subject.device), kv, shape, kept

    def _shape(self) -> tuple[Shape, int]:
        rows, length = self.host["input_ids"].shape
        last = self.asked.attached.last if self.asked.attached is not None else None
        if last is None:
            return Shape(rows, length, (), self.visual), self.visual
        lengths = [int(mask.sum(1).max()) for mask in last.stages]
        steps = tuple(zip((stage.layer for stage in self.cell.stages), lengths, strict=True))
        return Shape(rows, length, steps, self.visual), sum(last.visual_after)


def _summed(
    stages: Sequence[Stage], arithmetic: Arithmetic, seconds: Mapping[str, list[float]], new: int
) -> list[Cost]:
    found: list[Cost] = []
    for number, stage in enumerate(stages):
        took = {step: seconds[f"{number} {step}"] for step in STEPS}
        full = {step: seconds[f"0 {step}"] for step in STEPS}
        peak, kv, shape, kept = stage.weighed()
        flops = arithmetic.prefill(shape)
        cell = stage.cell
        found.append(
            Cost(
                checkpoint=cell.checkpoint,
                method=cell.method,
                budget=cell.budget,
                rows=shape.rows,
                prompt_tokens=shape.length,
                visual_tokens=stages[0].visual,
                kept=kept,
                new_tokens=new,
                decode=Timing.of(stage.decoding[1:] or stage.decoding),  # the first one was the warm-up
                **{step: Timing.of(took[step]) for step in STEPS},
                **{f"faster_{step}": ratio(full[step], took[step]) for step in STEPS},
                peak_bytes=peak,
                kv_bytes=kv,
                flops=flops,
                bound=(found[0].flops if found else flops) / flops,
            )
        )
    return found
