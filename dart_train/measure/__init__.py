"""What answers are worth, how sure that is, and whether two rows of answers differ: numbers only, no model."""

from .figures import Figure, figure
from .intervals import bootstrap, wilson
from .metrics import METRICS, Metric, unknown_metric
from .paired import Difference, difference, holm, mcnemar

__all__ = [
    "METRICS",
    "Difference",
    "Figure",
    "Metric",
    "bootstrap",
    "difference",
    "figure",
    "holm",
    "mcnemar",
    "unknown_metric",
    "wilson",
]
