"""What checkpoints, methods and budgets are worth on the same questions, and what they cost."""

from .comparison import compare

__all__ = ["compare"]
