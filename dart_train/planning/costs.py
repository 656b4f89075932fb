"""What a workload costs: seconds or FLOPs by rates, the kept share at which a reduction pays, and bytes of a rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ..profiling.flops import FakeLayer, QuadraticCost
from ..profiling.timing import Timing
from .setup import TrainingSetup
from .workload import MicroBatches, StepWorkload

_HEAD_FORWARD = 1 / 3  # of a head's forward and backward
_HALVINGS = 40  # of the interval in which the break-even share is searched
_FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Rates:
    """Costs in seconds, or in FLOPs. layer: of a decoder layer in training, recomputation included; forward: of a
    teacher's; both by rows and length. head: by targets. tower: of a visual token, of which `projector` does not shrink
    with a stage in the vision tower (0: not known, all of it shrinks). choice: of a row with images.
    other: of a micro-batch: embedding, masks, Python. optimizer: of a step. tower_saved: bytes that autograd keeps for
    a visual token."""

    layer: QuadraticCost
    forward: QuadraticCost
    head: QuadraticCost
    tower: float
    choice: float = 0.0
    other: float = 0.0
    optimizer: float = 0.0
    tower_saved: float = 0.0
    projector: float = 0.0
    timings: Mapping[str, Timing] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def costs(self, work: StepWorkload, teacher: StepWorkload | None = None) -> dict[str, np.ndarray]:
        """[micro-batches] of each part."""
        found = {
            "vision tower": work.pixels * (self.projector + work.tower_share * (self.tower - self.projector)),
            "decoder layers": _all_layers(work, self.layer),
            "head and loss": self.head(1, work.targets),
            "choice of tokens": self._choice(work),
            "other": np.full(len(work.rows), self.other),
        }
        if teacher is not None:
            layers, head = _all_layers(teacher, self.forward), self.head(1, work.targets) * _HEAD_FORWARD
            again = found["vision tower"] if teacher.tower_again else 0.0
            name = "reference" if teacher.tower_again else "teacher"  # for a teacher's layers the tower runs once
            found[name] = layers + head + self._choice(teacher) + again
        return found

    def step(
        self, work: StepWorkload, accumulation: int, ranks: int = 1, teacher: StepWorkload | None = None
    ) -> dict[str, float]:
        """Mean of an optimizer step. Ranks wait for the slowest of them; communication is not counted."""
        parts = self.costs(work, teacher)
        together = np.asarray(sum(parts.values()))
        waiting = together.reshape(-1, ranks).max(1).mean() - together.mean() if ranks > 1 else 0.0
        found = {name: float(cost.mean()) * accumulation for name, cost in parts.items()}
        return {**found, "waiting for other ranks": float(waiting) * accumulation, "optimizer": self.optimizer}

    def _choice(self, work: StepWorkload) -> np.ndarray:
        return np.where((work.visual > 0) & work.reduced, work.rows, 0) * self.choice


def _all_layers(work: StepWorkload, layer: QuadraticCost) -> np.ndarray:
    return np.asarray(sum(number * layer(work.rows, lengths) for number, lengths in work.stages))


def break_even_ratio(rates: Rates, batches: MicroBatches, layer: int, resized: bool = False) -> float | None:
    """The largest share of visual tokens kept from `layer` on at which a micro-batch takes no longer than with all of
    them; None if the reduction would not pay even without any. resized: the tower makes fewer, too."""

    def seconds(work: StepWorkload) -> float:
        return sum(float(cost.sum()) for cost in rates.costs(work).values())

    def at(share: float) -> float:
        return seconds(batches.at_share(share, layer, resized))

    full = seconds(batches.workload())
    if at(0.0) > full:
        return None
    if at(1.0) <= full:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) <= full else (low, middle)
    return low


def static_memory(model: nn.Module, setup: TrainingSetup) -> dict[str, int]:
    """Bytes of a rank that stay allocated: weights, gradients, AdamW's state. Only shapes and dtypes are read.

    Weights that train but never get a gradient (the tower's last layer, where an earlier one is taken) count as well.
    AdamW keeps two moments and a counter for each weight tensor, DeepSpeed in float32 and with a float32 copy of
    weights in half precision. ZeRO shards the optimizer over the ranks (stage 1), the gradients too (2), the weights
    too (3), as FSDP2 does. What is offloaded is on the host and not counted.
    """
    train, weights = setup.recipe.train, list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    shards = [setup.ranks if setup.sharded >= stage else 1 for stage in (1, 2, 3)]
    return {
        "weights": 0 if train.offload_parameters else sum(map(_bytes, weights)) // shards[2],
        **({"reference": sum(map(_bytes, weights))} if setup.copies_reference else {}),
        "gradients": sum(map(_bytes, trained)) // shards[1],
        "optimizer": 0 if train.offload_optimizer else sum(_adamw_bytes(w, setup) for w in trained) // shards[0],
    }


def _bytes(weight: Any) -> int:
    return int(weight.numel() * weight.element_size())


def _adamw_bytes(weight: Any, setup: TrainingSetup) -> int:
    if not setup.deepspeed:
        return 2 * _bytes(weight) + _FLOAT32
    master_copy = weight.element_size() < _FLOAT32
    return int(weight.numel()) * _FLOAT32 * (2 + master_copy) + _FLOAT32


def activation_memory(
    work: StepWorkload, layer: FakeLayer, setup: TrainingSetup, vocabulary: int, tower_saved: float
) -> dict[str, int]:
    """Bytes that a forward leaves for its backward in the micro-batch with the most tokens: the decoder's, the
    tower's (`tower_saved` for a visual token), and the logits.

    Without checkpointing every layer keeps what autograd saves. With it, a layer keeps its input, and one layer at
    a time is computed again. Logits: as computed, as log-probabilities in float32, and their gradient.
    """
    at, recipe, width = work.longest, setup.recipe, setup.dtype.itemsize
    rows, padded = int(work.rows[at]), work.padded(at)
    stages = [(layers, int(lengths[at])) for layers, lengths in work.stages]
    saved = [layer.saved_bytes(rows, length, padded) for _, length in stages]
    if recipe.train.gradient_checkpointing:
        positions = sum(layers * rows * length for layers, length in stages)
        activations = positions * layer.text.config.hidden_size * width + max(saved)
    else:
        activations = sum(layers * size for (layers, _), size in zip(stages, saved, strict=True))
    models = 2 if recipe.runs_teacher else 1
    return {
        "decoder activations": activations,
        "tower activations": round(float(work.pixels[at]) * tower_saved * work.tower_share),
        "logits": int(work.targets[at]) * vocabulary * (width + 2 * _FLOAT32) * models,
    }
