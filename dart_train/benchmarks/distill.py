"""`bench distill`: a training step with a teacher, in one forward and in two, beside the student's step alone."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..hooks import Attached, attach
from ..profiling.device import DevicePeak
from ..profiling.timing import Timing, Workload
from ..reduction import DART
from ..training.objective import forward_teacher_separately, forward_with_teacher
from .batches import ANSWER
from .ideal import Ideal
from .options import rows_of, scale_of, shapes_of
from .shapes import Shape
from .sidebyside import COLUMNS as COLUMNS_BESIDE
from .sidebyside import compare, device_peak, spread, tidy
from .step import NAMES
from .subject import Mode, Subject, subject_of
from .table import Table, times
from .training import TrainStep
from .ways import LAYER, Way

ALONE, TWICE, SHARED = "student alone", "teacher in a second forward", "teacher in the same forward"
TEACHERS = {"gap": 0.2, "full": 1.0}  # more of the visual tokens than the student: the middle of the default schedule
TEMPERATURE = 2.0
WAYS = {TWICE: forward_teacher_separately, SHARED: forward_with_teacher}


@dataclass(frozen=True)
class Lesson:
    """A step of the student, with a teacher that keeps `keep` of the visual tokens, or alone."""

    trainee: TrainStep
    keep: float | None = None
    how: str = ALONE

    @property
    def name(self) -> str:
        return self.how

    def job(self, way: Way) -> Workload:
        return lambda: self.trainee.learn(self._loss(way.attached))

    def _loss(self, attached: Attached | None) -> Tensor:
        subject = self.trainee.subject
        if self.keep is None:
            return self.trainee.loss(attached, False)
        assert attached is not None
        told, teacher = WAYS[self.how](subject.model, attached, subject.batch, subject.host, [self.keep])
        divergence = told.divergence(teacher, TEMPERATURE)
        return (told.loss() + divergence) / (2 * told.targets.numel())


def add_options(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> list[Table]:
    peak, rows = device_peak(options), []
    for shape in shapes_of(options, "llava"):
        for mode in options.modes:
            rows += measure(shape, mode, peak, options)
            tidy(options.device)
    return [Table("Distillation", COLUMNS, rows, NOTES)]


def measure(shape: Shape, mode: Mode, peak: DevicePeak, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = rows_of(options, shape)
    subject = subject_of(shape, scale_of(options), rows, options.device, options.dtype, mode, ANSWER)
    trainee, found = TrainStep(subject), []
    for teacher, gap in TEACHERS.items():
        keep = min(1.0, shape.kept / shape.tokens + gap)
        lessons = [Lesson(trainee), *(Lesson(trainee, keep, how) for how in WAYS)]
        named = {lesson.name: lesson for lesson in lessons}
        student = partial(attach, subject.model, DART(keep=shape.kept, layer=LAYER), output="compact")
        ways, what = [Way(name, student) for name in named], f"{shape.key} {mode}, teacher {teacher}"
        side = compare(subject, ways, partial(_job, named), {}, options, what, base=ALONE)
        costs = bounds_of(subject, trainee, peak, keep)
        found += [{"trained": f"{NAMES[mode]}, {rows} rows", **_cost(row, teacher, keep, costs)} for row in side]
    return found


def _job(lessons: Mapping[str, Lesson], way: Way) -> Workload:
    return lessons[way.name].job(way)


def bounds_of(subject: Subject, trainee: TrainStep, peak: DevicePeak, keep: float) -> dict[str, float]:
    """Against the student's step: with the teacher's layers behind K alone, and with a forward of its own."""

    def whole() -> None:
        trainee.learn(trainee.loss(None, False))

    @torch.no_grad()
    def forward() -> None:
        trainee.loss(None, False)

    step, ahead = Ideal.of(subject, whole, peak, True), Ideal.of(subject, forward, peak, False)
    student, seen = step.at(subject.short), teacher_length(subject, keep)
    behind = ahead.layer(seen) * (subject.depth - LAYER)
    return {
        ALONE: 1.0,
        SHARED: (student + behind).seconds / student.seconds,
        TWICE: (student + ahead.at(seen)).seconds / student.seconds,
    }


def teacher_length(subject: Subject, keep: float) -> int:
    return subject.length - subject.shape.tokens + round(keep * subject.shape.tokens)


def _cost(row: dict[str, Any], teacher: str, keep: float, bounds: dict[str, float]) -> dict[str, Any]:
    """The inverse of how much faster it is."""
    faster, name = row.pop("faster", None), row["way"]
    found = {**row, "teacher": f"{teacher}, keeps {keep:.0%}", "bound": bounds[name]}
    if faster is not None:
        found["cost"] = Timing(1 / faster.median, 1 / faster.high, 1 / faster.low, faster.repeats)
    return found


COLUMNS: dict[str, Any] = {
    "model": lambda row: row["model"],
    "trained": lambda row: row["trained"],
    "teacher": lambda row: row["teacher"],
    "way": lambda row: row["way"],
    "of the student's step": lambda row: spread(row["cost"]) if "cost" in row else row.get("failed", ""),
    "bound": lambda row: times(row["bound"]),
    "peak memory, GiB": COLUMNS_BESIDE["peak memory, GiB"],
    "ms, median [quartiles]": COLUMNS_BESIDE["ms, median [quartiles]"],
    "repeats": COLUMNS_BESIDE["repeats"],
}
NOTES = (
    "Of the student's step: what a step with a teacher takes, round by round against the same step without one.",
    "Bound: the student's step, and the teacher's forward through the layers from 2 on at its own length; for two "
    "forwards, the encoder and the first layers once more. Counted as for the training step.",
    "Where the bound itself is above 1.5x, as with a teacher of full tokens, no way of running it can stay below.",
    f"Teacher: the same weights, keeping more (gap: {TEACHERS['gap']:.0%} of the visual tokens more, the middle of the "
    "default schedule; full: all). Loss: half cross-entropy, half divergence at the supervised positions.",
)
