"""`python -m dart_train bench`: what the reduction costs and gains on this machine."""

from .cli import main

__all__ = ["main"]
