"""`check(model, processor)`: the laws of the reduction, tested on the user's own model in seconds.

Two images with two questions of different length go through the user's processor. Each law compares two ways to
compute the same thing, and reports the largest relative difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..hooks import attach
from ..hooks.reference import masked_logits, plain_logits
from ..models.structure import find_parts
from ..reduction import DART, KeepAll, Random, Reducer
from ..reduction.batch_layout import IGNORED
from .continued import (
    cached_prefill,
    merges,
    past_window,
    reduced_second_turn,
    same_choice,
    second_turn,
    text_alongside,
)
from .measures import (
    STEPS,
    SUPERVISED,
    LawResult,
    ModelUnderTest,
    count_hooks,
    generate_greedily,
    largest,
    last_tokens,
    only_few_trained,
    relative_difference,
    step_differences,
)
from .packed import packed_rows
from .tower import tower_laws


@dataclass(frozen=True)
class CheckReport:
    model: str
    results: tuple[LawResult, ...]
    tolerance: float

    @property
    def findings(self) -> tuple[LawResult, ...]:
        """The former name of `results`, until the next release."""
        return self.results

    @property
    def ok(self) -> bool:
        """Nothing that was checked failed, and something was checked."""
        verdicts = [result.verdict for result in self.results]
        return "does not hold" not in verdicts and "holds" in verdicts

    def __str__(self) -> str:
        rows = [(r.law, r.verdict, "" if r.number is None else f"{r.number:.1e}", r.note) for r in self.results]
        wide = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{law:{wide[0]}}  {verdict:{wide[1]}}  {n:>{wide[2]}}  {note}" for law, verdict, n, note in rows]
        head = f"{self.model} (differences relative to the largest value, allowed {self.tolerance:.0e})"
        return "\n".join([head, *map(str.rstrip, lines)])


def check(model: Any, processor: Any, reducers: Sequence[Reducer] | None = None, *, show: bool = True) -> CheckReport:
    """Test the laws on a model that the package may not know, and print which hold.

    reducers: what to check; DART and Random at a quarter of the visual tokens unless given.
    A model that the reduction cannot be attached to raises NotImplementedError, which names what is missing.
    """
    reducers = default_reducers(model) if reducers is None else list(reducers)
    for reducer in reducers:
        attach(model, reducer).remove()  # every refusal is raised here, before anything runs
    training = model.training
    model.eval()
    try:
        tested = ModelUnderTest.of(model, processor)
        layers = sorted({reducer.layer for reducer in reducers})
        results = [_run_law(keep_all, tested, KeepAll(layer=layer)) for layer in layers]
        for reducer in reducers:
            results += [_run_law(law, tested, reducer) for law in LAWS]
        results += [_run_law(law, tested, reducers[0]) for law in (second_turn, reduced_second_turn)]
        results += [*tower_laws(tested), removal(tested)]
    finally:
        model.train(training)
    name = f"{type(find_parts(model).top).__name__}, {str(model.dtype).removeprefix('torch.')}"
    report = CheckReport(name, tuple(r for r in results if r is not None), tested.tolerance)
    if show:
        print(report)
    return report


def default_reducers(model: Any) -> list[Reducer]:
    """At layer 2, or in the middle of a model that is too shallow for that."""
    layer = min(2, len(find_parts(model).layers) // 2)
    return [DART(keep=0.25, layer=layer), Random(keep=0.25, layer=layer)]


Law = Callable[[ModelUnderTest, Reducer], LawResult | None]  # None: the law does not apply to the model


def _run_law(law: Law, tested: ModelUnderTest, reducer: Reducer) -> LawResult | None:
    """A law that raises does not hold; the other laws still run."""
    try:
        return law(tested, reducer)
    except Exception as error:
        note = f"{type(error).__name__}: {error}"
        return LawResult(f"{reducer.name}: {law.__name__}", "does not hold", note=note)


# The laws ---------------------------------------------------------------------------------------------------


def keep_all(tested: ModelUnderTest, reducer: Reducer) -> LawResult:
    """reducer: keep-all at some layer."""
    with attach(tested.model, reducer):
        logits = tested.logits()
    difference = relative_difference(logits, tested.plain, tested.real)
    return LawResult.of("keep-all changes nothing", difference, tested.tolerance, f"at layer {reducer.layer}")


def reduced(tested: ModelUnderTest, reducer: Reducer) -> LawResult:
    """The short forward, compared with the full-length one in which the mask hides what was dropped."""
    law = f"{reducer.name}: reduced = dropped tokens masked"
    with attach(tested.model, reducer) as attached:
        logits = tested.logits()
    kept = attached.last
    if kept is None:
        return LawResult(law, "does not hold", note="no visual token came into the forward")
    before, after = sum(kept.visual_before), sum(kept.visual_after)
    note = f"kept {after} of {before} visual tokens from layer {reducer.layer} on"
    if after == before:
        return LawResult(law, "not checked", note="nothing was dropped")
    if merges(reducer):
        return LawResult(law, "not checked", note=f"{note}; dropped tokens are merged into kept ones")
    try:
        with torch.no_grad():
            wanted = masked_logits(tested.model, tested.inputs, [(reducer.layer, kept.mask)])
    except NotImplementedError as refusal:
        return LawResult(law, "not checked", note=str(refusal))
    return LawResult.of(law, relative_difference(logits, wanted, kept.mask), tested.tolerance, note)


def generation(tested: ModelUnderTest, reducer: Reducer) -> LawResult:
    """Compared step by step until the texts differ, as they may after two equally likely tokens."""
    law = f"{reducer.name}: generation with a cache = without"
    with attach(tested.model, reducer):
        cached, uncached = (generate_greedily(tested.model, tested.inputs, use_cache) for use_cache in (True, False))
    differences = [d for row in range(len(tested.real)) for d in step_differences(cached, uncached, row)]
    note = f"{len(differences)} of {STEPS * len(tested.real)} greedy steps compared"
    return LawResult.of(law, largest(differences), tested.tolerance, note)


def gradients(tested: ModelUnderTest, reducer: Reducer) -> LawResult:
    """Gradients of the loss of each row's last tokens, for a weight of the first, first reduced and last layer."""
    law = f"{reducer.name}: gradients, full length = compact"
    labels = tested.inputs["input_ids"].masked_fill(~last_tokens(tested.real, SUPERVISED), IGNORED)
    found: list[Sequence[Tensor]] = []
    with torch.enable_grad(), only_few_trained(tested.model, reducer.layer) as few:
        for output in ("expand", "compact"):
            with attach(tested.model, reducer, output=output):
                loss = tested.model(**tested.inputs, labels=labels, use_cache=False).loss
            found.append([loss.detach(), *torch.autograd.grad(loss, list(few.values()))])
    zero = [name for name, gradient in zip(few, found[0][1:], strict=True) if not gradient.any()]
    if zero:
        return LawResult(law, "does not hold", note=f"no gradient reaches {', '.join(zero)}")
    difference = largest(relative_difference(one, other) for one, other in zip(*found, strict=True))
    note = f"loss {float(found[0][0]):.4g}, weights of {', '.join(few)}"
    return LawResult.of(law, difference, tested.tolerance, note)


def removal(tested: ModelUnderTest) -> LawResult:
    law = "removal leaves the model as it was"
    left = count_hooks(tested.model) - tested.hooks
    if left:
        return LawResult(law, "does not hold", note=f"{left} hooks are left")
    with torch.no_grad():
        logits = plain_logits(tested.model, tested.inputs)
    return LawResult.of(law, relative_difference(logits, tested.plain, tested.real), tested.tolerance)


LAWS: tuple[Law, ...] = (
    reduced,
    generation,
    gradients,
    packed_rows,
    cached_prefill,
    text_alongside,
    same_choice,
    past_window,
)
