"""Harm done to a trainer."""

from __future__ import annotations

from typing import Any

from dart_train.train.ranks import Ranks


def poison(trainer: Any, rank: int, step: int, what: str) -> None:
    """One rank's loss, or gradient, is no number in one step (1 is the first), last forward."""
    compute, forwards = trainer.compute_loss, trainer.args.gradient_accumulation_steps
    calls = 0

    def harmed(*given: Any, **named: Any) -> Any:
        nonlocal calls
        loss, calls = compute(*given, **named), calls + 1
        if Ranks.read().rank != rank or calls != step * forwards:
            return loss
        if what == "gradient":
            loss.register_hook(lambda gradient: gradient * float("inf"))
            return loss
        return loss * float(what)

    trainer.compute_loss = harmed
