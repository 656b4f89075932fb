"""The laws that make a reduction right, each held against one model on one batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attach import attach
from ..attach.oracle import masked_logits, plain_logits
from ..reducers import Reducer
from .report import Finding
from .tools import STEPS, apart, count_hooks, greedy, last_tokens, logits_of, only_few_trained, worst

SUPERVISED = 4


@dataclass(frozen=True)
class Subject:
    """tolerance: half of the digits of the model's dtype. plain: its logits [B, L, V], nothing attached."""

    model: Any
    inputs: Mapping[str, Any]
    tolerance: float
    plain: Tensor
    hooks: int

    @classmethod
    def of(cls, model: Any, inputs: Mapping[str, Any]) -> Subject:
        tolerance = math.sqrt(torch.finfo(model.dtype).eps)
        with torch.no_grad():
            return cls(model, inputs, tolerance, plain_logits(model, inputs), count_hooks(model))

    @property
    def real(self) -> Tensor:
        """[B, L] bool."""
        return self.inputs["attention_mask"].bool()


def keep_all(subject: Subject, reducer: Reducer) -> Finding:
    """reducer: keep-all at some layer."""
    with attach(subject.model, reducer):
        logits = logits_of(subject.model, subject.inputs)
    difference = apart(logits, subject.plain, subject.real)
    return Finding.of("keep-all changes nothing", difference, subject.tolerance, f"at layer {reducer.layer}")


def reduced(subject: Subject, reducer: Reducer) -> Finding:
    """The short forward, against the full-length one that hides what was dropped."""
    law = f"{reducer.name}: reduced = dropped tokens masked"
    with attach(subject.model, reducer) as attached:
        logits = logits_of(subject.model, subject.inputs)
    kept = attached.last
    if kept is None:
        return Finding(law, "does not hold", note="the forward saw no visual token")
    before, after = sum(kept.visual_before), sum(kept.visual_after)
    note = f"kept {after} of {before} visual tokens from layer {reducer.layer} on"
    if after == before:
        return Finding(law, "not checked", note="nothing was dropped")
    if reducer.merge != "none" or type(reducer).content is not Reducer.content:
        return Finding(law, "not checked", note=f"{note}; dropped tokens live on in kept ones")
    try:
        with torch.no_grad():
            truth = masked_logits(subject.model, subject.inputs, [(reducer.layer, kept.mask)])
    except NotImplementedError as refusal:
        return Finding(law, "not checked", note=str(refusal))
    return Finding.of(law, apart(logits, truth, kept.mask), subject.tolerance, note)


def generation(subject: Subject, reducer: Reducer) -> Finding:
    """Step by step, as long as both go the same way: after an honest tie the texts differ, and rightly so."""
    law = f"{reducer.name}: generation with a cache = without"
    with attach(subject.model, reducer):
        cached, uncached = (greedy(subject.model, subject.inputs, use_cache) for use_cache in (True, False))
    differences = [d for row in range(len(subject.real)) for d in _steps_apart(cached, uncached, row)]
    note = f"{len(differences)} of {STEPS * len(subject.real)} greedy steps compared"
    return Finding.of(law, worst(differences), subject.tolerance, note)


def _steps_apart(one: Any, other: Any, row: int) -> Iterator[float]:
    """Differences of the logits of one row, up to the step at which the two texts part."""
    start = one.sequences.shape[1] - STEPS
    for step in range(STEPS):
        yield apart(one.logits[step][row], other.logits[step][row])
        if one.sequences[row, start + step] != other.sequences[row, start + step]:
            return


def gradients(subject: Subject, reducer: Reducer) -> Finding:
    """Of the loss of each row's last tokens, by a weight of the first, the first short and the last layer."""
    law = f"{reducer.name}: gradients, full length = compact"
    labels = subject.inputs["input_ids"].masked_fill(~last_tokens(subject.real, SUPERVISED), -100)
    found: list[Sequence[Tensor]] = []
    with torch.enable_grad(), only_few_trained(subject.model, reducer.layer) as few:
        for output in ("expand", "compact"):
            with attach(subject.model, reducer, output=output):
                loss = subject.model(**subject.inputs, labels=labels, use_cache=False).loss
            found.append([loss.detach(), *torch.autograd.grad(loss, list(few.values()))])
    still = [name for name, gradient in zip(few, found[0][1:], strict=True) if not gradient.any()]
    if still:
        return Finding(law, "does not hold", note=f"no gradient reaches {', '.join(still)}")
    difference = worst(apart(one, other) for one, other in zip(*found, strict=True))
    note = f"loss {float(found[0][0]):.4g}, weights of {', '.join(few)}"
    return Finding.of(law, difference, subject.tolerance, note)


def removal(subject: Subject) -> Finding:
    law = "removal leaves the model as it was"
    left = count_hooks(subject.model) - subject.hooks
    if left:
        return Finding(law, "does not hold", note=f"{left} hooks are left")
    with torch.no_grad():
        logits = plain_logits(subject.model, subject.inputs)
    return Finding.of(law, apart(logits, subject.plain, subject.real), subject.tolerance)
