"""Compares checkpoints, methods and budgets on the same questions: scores, paired tests, cost and a report."""

from .comparison import compare

__all__ = ["compare"]
