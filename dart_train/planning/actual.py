"""What a run measured, under the names of a plan's figures: read from its `metrics.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

GIB = 1 << 30


def measured(run: Path) -> dict[str, float]:
    """Medians over the logged steps, the first one apart (it builds what later ones reuse); the largest memory."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(f"{run} holds no metrics.jsonl; expected the folder of a run (train.output_dir)")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "step_seconds" in line and "visual_before" in line]
    if not steps:
        raise ValueError(f"{file} holds no measured step; let the run go on for a few logged steps")
    warm = steps[1:] or steps
    before, after = (sum(line[name] for line in steps) for name in ("visual_before", "visual_after"))
    return {
        "step_seconds": _median(warm, "step_seconds"),
        "samples_per_second": _median(warm, "samples_per_second"),
        "peak_memory_bytes": max(line["peak_memory_gib"] for line in steps) * GIB,
        "share_of_visual_tokens_kept": after / before if before else 1.0,
    }


def _median(lines: list[dict[str, Any]], name: str) -> float:
    return float(median(line[name] for line in lines))
