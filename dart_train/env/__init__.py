"""What a bug report needs, and what is known not to go well together."""

from .facts import Facts, gather
from .known import warnings_for

__all__ = ["Facts", "gather", "warnings_for"]
