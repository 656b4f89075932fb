"""Speed, tokens, data wait and memory: counted where they happen, summed over the ranks for each line of metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..hooks import Attached
from ..hooks.batch_plan import has_images
from ..reduction.packed_rows import ROW_LENGTHS
from .objective import count_targets
from .scorer_training import ScorerStep

# Summed over the ranks. Times are in seconds.
_SUMMED = (
    "visual_before", "visual_after", "tokens", "samples", "answer_loss", "divergence", "targets", "skipped_rows",
    "selection_time", "step_time", "scorer_loss", "scorer_forwards",
    "scorer_overlap", "scorer_overlaps", "scorer_task_loss",
)  # fmt: skip


_SCORER = ("scorer_loss", "scorer_overlap", "scorer_task_loss")


class ThroughputMeter:
    """Counts between two lines of metrics."""

    def __init__(self, attached: Attached | None = None) -> None:
        self.attached = attached
        self.reset()

    def reset(self) -> None:
        self.sums = dict.fromkeys(_SUMMED, 0.0)
        self.losses: list[tuple[Tensor, Tensor]] = []
        self.scorer_losses: dict[str, list[Tensor]] = {name: [] for name in _SCORER}
        self.steps, self.step_seconds, self.data_wait_seconds = 0, 0.0, 0.0
        self.since = time.perf_counter()

    def start_step(self) -> None:
        if self.attached is not None:
            self.attached.time_selection(True)
        self.step_began = time.perf_counter()

    def end_step(self) -> None:
        self.steps += 1
        self.step_seconds += time.perf_counter() - self.step_began
        if self.attached is not None:
            self.attached.time_selection(False)  # validation selects tokens too, and is not counted

    def add_data_wait(self, seconds: float) -> None:
        self.data_wait_seconds += seconds

    def add_forward(self, host: Mapping[str, Any]) -> None:
        """After a forward. `host`: its batch on the CPU."""
        mask, labels = host.get("attention_mask"), host["labels"]
        self.sums["tokens"] += float(labels.numel() if mask is None else mask.sum())
        self.sums["samples"] += len(host.get(ROW_LENGTHS, labels))
        self.sums["targets"] += count_targets(host)
        last = self.attached.last if self.attached is not None and has_images(host) else None
        if last is not None:
            self.sums["visual_before"] += sum(last.visual_before)
            self.sums["visual_after"] += sum(last.visual_after)

    def add_distill_loss(self, answer: Tensor, divergence: Tensor) -> None:
        """Sums over targets. They stay on the device until the next line of metrics: nothing waits for it."""
        self.losses.append((answer.detach(), divergence.detach()))

    def add_scorer_step(self, step: ScorerStep, with_task: bool) -> None:
        """Losses and overlap stay on the device until the next line of metrics."""
        found = {"scorer_loss": step.attention_loss, "scorer_overlap": step.overlap}
        found["scorer_task_loss"] = step.task_loss if with_task else None
        for name, value in found.items():
            if value is not None:
                self.scorer_losses[name].append(value.detach())

    def read_and_reset(self, accelerator: Any, rows: Mapping[str, int]) -> dict[str, float]:
        """Collective. rows: this rank's counts of rows since the start."""
        self.sums["skipped_rows"] = rows["bad"] + rows["too_long"]
        self.sums["step_time"] = self.step_seconds
        self.sums["selection_time"] = 0.0 if self.attached is None else self.attached.selection_seconds()
        for answer, divergence in self.losses:
            self.sums["answer_loss"] += float(answer)
            self.sums["divergence"] += float(divergence)
        for name, values in self.scorer_losses.items():
            self.sums[name] = float(torch.stack(values).double().sum()) if values else 0.0
        self.sums["scorer_forwards"] = len(self.scorer_losses["scorer_loss"])
        self.sums["scorer_overlaps"] = len(self.scorer_losses["scorer_overlap"])
        local = torch.tensor([self.sums[name] for name in _SUMMED], dtype=torch.float64)
        total = accelerator.reduce(local.float().to(accelerator.device), "sum").tolist()
        metrics = self._metrics(dict(zip(_SUMMED, total, strict=True)))
        self.reset()
        return metrics

    def _metrics(self, total: dict[str, float]) -> dict[str, float]:
        elapsed, steps = max(time.perf_counter() - self.since, 1e-9), max(self.steps, 1)
        metrics = {
            "visual_before": total["visual_before"],
            "visual_after": total["visual_after"],
            "tokens_per_second": total["tokens"] / elapsed,
            "samples_per_second": total["samples"] / elapsed,
            "step_seconds": self.step_seconds / steps,
            "data_wait_seconds": self.data_wait_seconds / steps,
            "peak_memory_gib": _peak_memory(),
            "skipped_rows": total["skipped_rows"],
            "selector_share": total["selection_time"] / max(total["step_time"], 1e-9),
        }
        if self.scorer_losses["scorer_loss"]:
            metrics["scorer_loss"] = total["scorer_loss"] / max(total["scorer_forwards"], 1)
            metrics["scorer_overlap"] = total["scorer_overlap"] / max(total["scorer_overlaps"], 1)
        if self.scorer_losses["scorer_task_loss"]:
            metrics["scorer_task_loss"] = total["scorer_task_loss"] / max(total["targets"], 1)
        if self.losses:
            metrics["answer_loss"] = total["answer_loss"] / max(total["targets"], 1)
            metrics["distill_loss"] = total["divergence"] / max(total["targets"], 1)
        return metrics


def _peak_memory() -> float:
    """GiB since the start, of the GPU, or of this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
