"""What a step costs, counted where it happens and summed over the ranks when a line of metrics is due."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..hooks import Attached
from ..hooks.batch_plan import has_images

_SUMMED = (
    "visual_before", "visual_after", "tokens", "samples", "answer_loss", "divergence", "targets", "skipped_rows",
    "choosing", "stepping",
)  # fmt: skip


class ThroughputMeter:
    """`read` is collective, and starts anew."""

    def __init__(self, attached: Attached | None = None) -> None:
        self.attached = attached
        self._clear()

    def _clear(self) -> None:
        self.sums = dict.fromkeys(_SUMMED, 0.0)
        self.losses: list[tuple[Tensor, Tensor]] = []
        self.steps, self.seconds, self.data_wait = 0, 0.0, 0.0
        self.since = time.perf_counter()

    def waited(self, seconds: float) -> None:
        self.data_wait += seconds

    def begin(self) -> None:
        self._time_choices(True)
        self.began = time.perf_counter()

    def end(self) -> None:
        self.steps += 1
        self.seconds += time.perf_counter() - self.began
        self._time_choices(False)

    def _time_choices(self, on: bool) -> None:
        """In steps only: validation chooses too."""
        if self.attached is not None:
            self.attached.time_selection(on)

    def forward(self, host: Mapping[str, Any], attached: Attached | None) -> None:
        """After a forward: `host` is its batch on the CPU."""
        mask, labels = host.get("attention_mask"), host["labels"]
        self.sums["tokens"] += float(labels.numel() if mask is None else mask.sum())
        self.sums["samples"] += len(labels)
        self.sums["targets"] += float((labels[:, 1:] != -100).sum())
        last = attached.last if attached is not None and has_images(host) else None
        if last is not None:
            self.sums["visual_before"] += sum(last.visual_before)
            self.sums["visual_after"] += sum(last.visual_after)

    def taught(self, answer: Tensor, divergence: Tensor) -> None:
        """Sums over targets; read only when a line is due, so that nothing waits for the device."""
        self.losses.append((answer.detach(), divergence.detach()))

    def read(self, accelerator: Any, rows: Mapping[str, int]) -> dict[str, float]:
        """rows: this rank's counts of rows since the start."""
        self.sums["skipped_rows"] = rows["bad"] + rows["too_long"]
        self.sums["stepping"] = self.seconds
        self.sums["choosing"] = 0.0 if self.attached is None else self.attached.selection_seconds()
        for answer, divergence in self.losses:
            self.sums["answer_loss"] += float(answer)
            self.sums["divergence"] += float(divergence)
        local = torch.tensor([self.sums[name] for name in _SUMMED], dtype=torch.float64)
        total = accelerator.reduce(local.float().to(accelerator.device), "sum").tolist()
        found = self._told(dict(zip(_SUMMED, total, strict=True)))
        self._clear()
        return found

    def _told(self, total: dict[str, float]) -> dict[str, float]:
        elapsed, steps = max(time.perf_counter() - self.since, 1e-9), max(self.steps, 1)
        taught = bool(self.losses)
        told = {
            "visual_before": total["visual_before"],
            "visual_after": total["visual_after"],
            "tokens_per_second": total["tokens"] / elapsed,
            "samples_per_second": total["samples"] / elapsed,
            "step_seconds": self.seconds / steps,
            "data_wait_seconds": self.data_wait / steps,
            "peak_memory_gib": _peak_memory(),
            "skipped_rows": total["skipped_rows"],
            "selector_share": total["choosing"] / max(total["stepping"], 1e-9),
        }
        if taught:
            told["answer_loss"] = total["answer_loss"] / max(total["targets"], 1)
            told["distill_loss"] = total["divergence"] / max(total["targets"], 1)
        return told


def _peak_memory() -> float:
    """Of the GPU since the start; of this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
