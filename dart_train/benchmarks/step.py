"""`bench step`: a training step, LoRA and full, at full tokens, reduced, and in the field's other ways."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..profiling.device import DevicePeak
from . import sidebyside
from .batches import ANSWER, BEFORE, BEHIND
from .ideal import Ideal
from .options import FULL, NOTHING, OURS, rows_of, scale_of, shapes_of
from .shapes import Shape
from .sidebyside import Bound, compare, device_peak, tidy
from .subject import Mode, Subject, subject_of
from .table import Row, Table, percent
from .training import TrainStep
from .ways import ways_of

NAMES = {"lora": "LoRA", "full": "full"}


def add_options(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> list[Table]:
    peak, rows = device_peak(options), []
    for shape in shapes_of(options):
        for mode in options.modes:
            rows += measure(shape, mode, peak, options)
            tidy(options.device)
    columns = {"trained": lambda row: row["trained"], **sidebyside.COLUMNS, "peak memory, of full": _share}
    return [Table("Training step", columns, rows, _notes(rows))]


def measure(shape: Shape, mode: Mode, peak: DevicePeak, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Where full tokens do not fit, everything once more with checkpointing: there is nothing to compare with else."""
    try:
        found = _measure(shape, mode, peak, options, options.checkpointing)
    except torch.OutOfMemoryError:  # before anything was compared
        found = []
    if options.checkpointing or (found and "failed" not in found[0]):
        return found
    tidy(options.device)
    return _measure(shape, mode, peak, options, checkpointing=True)


def _measure(
    shape: Shape, mode: Mode, peak: DevicePeak, options: argparse.Namespace, checkpointing: bool
) -> list[dict[str, Any]]:
    rows = rows_of(options, shape)
    subject = subject_of(shape, scale_of(options), rows, options.device, options.dtype, mode, ANSWER, checkpointing)
    trainee = TrainStep(subject)
    ways = ways_of(subject.model, shape, subject.kept, "compact", options.ways)
    found = compare(subject, ways, trainee.step, bounds_of(subject, trainee, peak), options, f"{shape.key} {mode}")
    trained = f"{NAMES[mode]}, {rows} rows" + (", checkpointing" if checkpointing else "")
    return [{"trained": trained, **row, **_memory(row, found, subject)} for row in found]


def _memory(row: dict[str, Any], rows: list[dict[str, Any]], subject: Subject) -> dict[str, Any]:
    """Its share of the peak at full tokens; of ours also what it would be if all of it were activations of layers."""
    full = next((each.get("peak bytes") for each in rows if each["way"] == FULL), None)
    if not full or "peak bytes" not in row:
        return {}
    allowed = {"memory allowed": subject.true_share} if row["way"] == OURS else {}
    return {"memory": row["peak bytes"] / full, **allowed}


def _share(row: Row) -> str:
    allowed = f" (activations allow {percent(row['memory allowed'])})" if "memory allowed" in row else ""
    return percent(row["memory"]) + allowed if "memory" in row else ""


def bounds_of(subject: Subject, trainee: TrainStep, peak: DevicePeak) -> dict[str, Bound]:
    def whole() -> None:
        trainee.learn(trainee.loss(None, False))

    ideal = Ideal.of(subject, whole, peak, training=True)
    short = ideal.at(subject.short)
    ours = Bound(ideal.full.flops / short.flops, ideal.full.seconds / short.seconds)
    return {OURS: ours, NOTHING: Bound(1.0, 1.0)}


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    text = (
        f"A row: {BEFORE} tokens, one picture, {BEHIND} tokens, {ANSWER} to be learnt. Forward, loss at supervised "
        "positions only (full tokens too), backward, fused AdamW; the tower frozen, the projector whole."
    )
    memory = (
        "Activations allow: the share of places that all layers together still hold. Logits, the projector's and the "
        "tower's states and the gradients do not shrink by it."
    )
    return [text, *sidebyside.NOTES, memory]
