"""`bench step`, `bench video` and `bench distill`: a training step, LoRA and full, in all variants, on images and on
videos; and a step with a teacher."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..hooks import Attached, attach
from ..profiling.device import DevicePeak, measure_peak
from ..profiling.timing import Timing
from ..reduction import DART
from ..training.objective import forward_supervised, forward_teacher_separately, forward_with_teacher
from .baselines import FULL, KEEP_ALL, MASKED, OURS, Variant, make_variants
from .cli import rows_of, scale_of
from .comparison import COLUMNS, NOTES, IdealCost, compare_variants, each_shape, release_memory
from .model_shapes import VIDEO_SHAPE, ModelShape
from .table import BenchTable, Row, percent, ratio_text, times
from .workloads import ANSWER, LAYER, PROMPT_AFTER, PROMPT_BEFORE, BenchModel, Mode

MODE_NAMES = {"lora": "LoRA", "full": "full"}
VIDEO_WAYS = (FULL, KEEP_ALL, OURS, MASKED)


class TrainStep:
    """Loss at supervised positions, backward, AdamW. The learning rate is so small that every step costs the same."""

    def __init__(self, bench: BenchModel, model: Any = None) -> None:
        """model: what wraps the bench's, for training on several ranks."""
        self.bench, self.model = bench, bench.model if model is None else model
        weights = [weight for weight in bench.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=1e-9, fused=True)
        if model is None:
            self.full_tokens()  # AdamW allocates its moments in the first step

    def full_tokens(self) -> None:
        self.update(self.loss(None, False))

    def step(self, variant: Variant) -> None:
        self.update(self.loss(variant.attached, variant.small))

    def update(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self, attached: Attached | None, small: bool) -> Tensor:
        batch, host = self.bench.inputs(small)
        output = forward_supervised(self.model, attached, batch, host)
        return output.loss() / output.targets.numel()


def bench_step(options: argparse.Namespace) -> BenchTable:
    text = (
        f"A row: {PROMPT_BEFORE} tokens, one image, {PROMPT_AFTER} tokens, {ANSWER} supervised ones. Forward, loss at "
        "supervised positions only (for full tokens too), backward, fused AdamW; the tower frozen, the projector in "
        "full."
    )
    return BenchTable("Training step", STEP_COLUMNS, each_shape(options, _measure_modes), [text, *NOTES, MEMORY_NOTE])


def bench_video(options: argparse.Namespace) -> BenchTable:
    """The same step on rows with a video in place of the image."""
    ways = [way for way in options.ways if way in VIDEO_WAYS]
    given = argparse.Namespace(**{**vars(options), "ways": ways})
    rows = _measure_modes(VIDEO_SHAPE, measure_peak(options.device, options.dtype), given)
    shape, (height, width) = VIDEO_SHAPE, (14 * side for side in VIDEO_SHAPE.grid)
    text = (
        f"A row: {PROMPT_BEFORE} tokens, a video of {shape.frames} frames of {width} x {height} "
        f"pixels ({shape.tokens} tokens), {PROMPT_AFTER} tokens, {ANSWER} supervised ones; DART keeps "
        f"{shape.kept / shape.tokens:.1%}. Forward, loss at supervised positions only (for full tokens too), backward, "
        "fused AdamW; the tower, which is the same work in all variants, frozen, the projector in full."
    )
    return BenchTable("Training step on videos", STEP_COLUMNS, rows, [text, *NOTES[:3], MEMORY_NOTE])


def _measure_modes(shape: ModelShape, peak: DevicePeak, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for mode in options.modes:
        rows += measure_step(shape, mode, peak, options)
        release_memory(options.device)
    return rows


def measure_step(shape: ModelShape, mode: Mode, peak: DevicePeak, options: argparse.Namespace) -> list[dict[str, Any]]:
    """If full tokens do not fit, all variants again with checkpointing: there must be something to compare with."""
    try:
        found = _measure_step(shape, mode, peak, options, options.checkpointing)
    except torch.OutOfMemoryError:  # while the model was built
        found = []
    if options.checkpointing or (found and "failed" not in found[0]):
        return found
    release_memory(options.device)
    return _measure_step(shape, mode, peak, options, checkpointing=True)


def _measure_step(
    shape: ModelShape, mode: Mode, peak: DevicePeak, options: argparse.Namespace, checkpointing: bool
) -> list[dict[str, Any]]:
    rows, scale = rows_of(options, shape), scale_of(options)
    bench = BenchModel.build(shape, scale, rows, options.device, options.dtype, mode, ANSWER, checkpointing)
    trainer = TrainStep(bench)
    bounds = IdealCost.of(bench, trainer.full_tokens, peak, training=True).bounds()
    variants = make_variants(bench, "compact", options.ways)
    found = compare_variants(
        bench, variants, lambda variant: partial(trainer.step, variant), bounds, options, f"{shape.key} {mode}"
    )
    trained = f"{MODE_NAMES[mode]}, {rows} rows" + (", checkpointing" if checkpointing else "")
    return [{"trained": trained, **row, **_memory_share(row, found, bench)} for row in found]


def _memory_share(row: dict[str, Any], rows: list[dict[str, Any]], bench: BenchModel) -> dict[str, Any]:
    """The share of the peak memory at full tokens; for DART also the share if the peak were all layer activations."""
    full = next((each.get("peak bytes") for each in rows if each["way"] == FULL), None)
    if not full or "peak bytes" not in row:
        return {}
    allowed = {"memory allowed": bench.position_share} if row["way"] == OURS else {}
    return {"memory": row["peak bytes"] / full, **allowed}


def _memory_text(row: Row) -> str:
    allowed = f" (activations allow {percent(row['memory allowed'])})" if "memory allowed" in row else ""
    return percent(row["memory"]) + allowed if "memory" in row else ""


STEP_COLUMNS: dict[str, Any] = {
    "trained": lambda row: row["trained"],
    **COLUMNS,
    "peak memory, of full": _memory_text,
}
MEMORY_NOTE = (
    "Activations allow: the share of positions that all layers together still hold. Logits, the states of the "
    "projector and the tower, and gradients do not shrink with it."
)


ALONE, TWICE, SHARED = "student alone", "teacher in a second forward", "teacher in the same forward"
TEACHERS = {"gap": 0.2, "full": 1.0}  # of the visual tokens more than the student: as in the middle of the default
TEMPERATURE = 2.0
FORWARDS = {TWICE: forward_teacher_separately, SHARED: forward_with_teacher}


class DistillStep:
    """A step of the student, alone (`how` is ALONE) or with a teacher that keeps `keep` of the visual tokens."""

    def __init__(self, trainer: TrainStep, how: str, keep: float) -> None:
        self.trainer, self.how, self.keep = trainer, how, keep

    def step(self, variant: Variant) -> None:
        self.trainer.update(self._loss(variant.attached))

    def _loss(self, attached: Attached | None) -> Tensor:
        bench = self.trainer.bench
        if self.how == ALONE:
            return self.trainer.loss(attached, False)
        assert attached is not None
        student, teacher = FORWARDS[self.how](bench.model, attached, bench.batch, bench.host, [self.keep])
        return (student.loss() + student.divergence(teacher, TEMPERATURE)) / (2 * student.targets.numel())


def bench_distill(options: argparse.Namespace) -> BenchTable:
    def measure(shape: ModelShape, peak: DevicePeak, options: argparse.Namespace) -> list[dict[str, Any]]:
        rows = []
        for mode in options.modes:
            rows += measure_distill(shape, mode, peak, options)
            release_memory(options.device)
        return rows

    return BenchTable("Distillation", DISTILL_COLUMNS, each_shape(options, measure, "llava"), DISTILL_NOTES)


def measure_distill(
    shape: ModelShape, mode: Mode, peak: DevicePeak, options: argparse.Namespace
) -> list[dict[str, Any]]:
    rows = rows_of(options, shape)
    bench = BenchModel.build(shape, scale_of(options), rows, options.device, options.dtype, mode, ANSWER)
    trainer, found = TrainStep(bench), []
    student = partial(attach, bench.model, DART(keep=shape.kept, layer=LAYER), output="compact")
    for teacher, gap in TEACHERS.items():
        keep = min(1.0, shape.kept / shape.tokens + gap)
        steps = {how: DistillStep(trainer, how, keep) for how in (ALONE, *FORWARDS)}
        variants = [Variant(how, student) for how in steps]
        progress = f"{shape.key} {mode}, teacher {teacher}"
        compared = compare_variants(
            bench, variants, lambda v, steps=steps: partial(steps[v.name].step, v), {}, options, progress, base=ALONE  # type: ignore[misc]
        )  # fmt: skip
        bounds = distill_bounds(bench, trainer, peak, keep)
        facts = {"trained": f"{MODE_NAMES[mode]}, {rows} rows", "teacher": f"{teacher}, keeps {keep:.0%}"}
        found += [{**facts, **_as_cost(row), "bound": bounds[row["way"]]} for row in compared]
    return found


def distill_bounds(bench: BenchModel, trainer: TrainStep, peak: DevicePeak, keep: float) -> dict[str, float]:
    """Against the student's step: with the teacher's layers after K alone, and with a complete forward of its own."""

    @torch.no_grad()
    def forward() -> None:
        trainer.loss(None, False)

    length = bench.length - bench.shape.tokens + round(keep * bench.shape.tokens)  # of the teacher
    step, teacher = IdealCost.of(bench, trainer.full_tokens, peak, True), IdealCost.of(bench, forward, peak, False)
    student = step.at(bench.reduced_length)
    layers = teacher.layer(length) * (bench.depth - LAYER)
    return {
        ALONE: 1.0,
        SHARED: (student + layers).seconds / student.seconds,
        TWICE: (student + teacher.at(length)).seconds / student.seconds,
    }


def _as_cost(row: dict[str, Any]) -> dict[str, Any]:
    """How many times the student's step it takes, instead of how many times as fast it is."""
    faster = row.pop("faster", None)
    if faster is None:
        return row
    return {**row, "cost": Timing(1 / faster.median, 1 / faster.high, 1 / faster.low, faster.repeats)}


DISTILL_COLUMNS: dict[str, Any] = {
    "model": lambda row: row["model"],
    "trained": lambda row: row["trained"],
    "teacher": lambda row: row["teacher"],
    "variant": lambda row: row["way"],
    "of the student's step": lambda row: ratio_text(row["cost"]) if "cost" in row else row.get("failed", ""),
    "bound (student's step + teacher's forward, counted)": lambda row: times(row["bound"]),
    **{name: COLUMNS[name] for name in ("peak memory, GiB", "ms, median [quartiles]", "repeats")},
}
DISTILL_NOTES = (
    "Of the student's step: the time of a step with a teacher, round by round against the same step without one.",
    "Bound: the least that it can take: the student's step, and the teacher's forward through the layers from 2 on at "
    "its own length; for two forwards, the vision tower and the first layers once more. Counted as for the training "
    "step.",
    "If the bound itself is above 1.5x, as with a teacher of full tokens, no implementation can stay below.",
    f"Teacher: the same weights, keeping more (gap: {TEACHERS['gap']:.0%} of the visual tokens more, the middle of the "
    "default schedule; full: all). Loss: half cross-entropy, half divergence at the supervised positions.",
)
