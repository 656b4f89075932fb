"""`check(model, processor)`: the laws of the reduction, proved on the user's own model in seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..attach import attach
from ..attach.anatomy import dissect
from ..reducers import DART, KeepAll, Random, Reducer
from . import laws
from .report import CheckReport, Finding
from .sample import ragged_batch

__all__ = ["CheckReport", "Finding", "check"]

Law = Callable[[laws.Subject, Reducer], Finding]


def check(model: Any, processor: Any, reducers: Sequence[Reducer] | None = None, *, show: bool = True) -> CheckReport:
    """Hold the laws against a model that nobody may have tried before, and print what holds.

    reducers: what to check; DART and Random at a quarter of the visual tokens unless given.
    A model that the reduction cannot be attached to: `NotImplementedError`, which names what is missing.
    """
    reducers = default_reducers(model) if reducers is None else list(reducers)
    for reducer in reducers:
        attach(model, reducer).remove()  # every refusal speaks here, before anything runs
    training = model.training
    model.eval()
    try:
        report = _report(model, processor, reducers)
    finally:
        model.train(training)
    if show:
        print(report)
    return report


def default_reducers(model: Any) -> list[Reducer]:
    """At layer 2, or in the middle of a model that is too shallow for that."""
    layer = min(2, len(dissect(model).layers) // 2)
    return [DART(keep=0.25, layer=layer), Random(keep=0.25, layer=layer)]


def _report(model: Any, processor: Any, reducers: Sequence[Reducer]) -> CheckReport:
    subject = laws.Subject.of(model, ragged_batch(processor, model))
    layers = sorted({reducer.layer for reducer in reducers})
    findings = [_held(laws.keep_all, subject, KeepAll(layer=layer)) for layer in layers]
    for reducer in reducers:
        findings += [_held(law, subject, reducer) for law in (laws.reduced, laws.generation, laws.gradients)]
    findings.append(laws.removal(subject))
    name = f"{type(dissect(model).top).__name__}, {str(model.dtype).removeprefix('torch.')}"
    return CheckReport(name, tuple(findings), subject.tolerance)


def _held(law: Law, subject: laws.Subject, reducer: Reducer) -> Finding:
    """What is refused or breaks does not hold; the other laws are tried all the same."""
    try:
        return law(subject, reducer)
    except Exception as error:
        note = f"{type(error).__name__}: {error}"
        return Finding(f"{reducer.name}: {law.__name__}", "does not hold", note=note)
