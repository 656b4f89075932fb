"""What a person sees of a run: a line on the screen, metrics.jsonl, and trackers on top."""

from .metrics import MetricsFile
from .progress import ProgressLine
from .trackers import trackers

__all__ = ["MetricsFile", "ProgressLine", "trackers"]
