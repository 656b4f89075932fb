"""The laws of a stage in the vision tower, on the user's own model: `TowerDART` with the first block of the tower."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..hooks import attach
from ..models.prompts import build_inputs, to_device, user_message
from ..models.structure import find_parts
from ..models.towers import find_tower
from ..reduction import KeepAll, TowerDART
from .measures import (
    QUESTIONS,
    STEPS,
    LawResult,
    ModelUnderTest,
    generate_greedily,
    largest,
    relative_difference,
    step_differences,
    test_images,
)

HALF = TowerDART(layer=0, keep=0.5)


def tower_laws(tested: ModelUnderTest) -> Iterator[LawResult]:
    """One result without a verdict where the tower is not known."""
    try:
        find_tower(find_parts(tested.model))
    except NotImplementedError as reason:
        yield LawResult("vision tower: TowerDART", "not checked", note=str(reason))
        return
    for law in (nothing_repeated, alone_and_in_a_batch, generated_with_a_cache):
        try:
            yield law(tested)
        except Exception as error:
            yield LawResult(f"vision tower: {law.__name__}", "does not hold", note=f"{type(error).__name__}: {error}")


def nothing_repeated(tested: ModelUnderTest) -> LawResult:
    """The images are noisy: no two units have the same pixels, unless the processor pads images."""
    law = "vision tower: nothing dropped changes nothing"
    with attach(tested.model, [TowerDART(layer=0, tolerance=0.0), KeepAll()]) as attached:
        difference = relative_difference(tested.logits(), tested.plain, tested.real)
        if attached.tower_share < 1:
            return LawResult(law, "not checked", note="the images repeat pixels, as where the processor pads them")
    return LawResult.of(law, difference, tested.tolerance)


def alone_and_in_a_batch(tested: ModelUnderTest) -> LawResult:
    """The logits of each prompt's last token."""
    law, alone = "vision tower: a batch = its samples one by one", list[Tensor]()
    with attach(tested.model, [HALF, KeepAll()]) as attached:
        together = tested.logits()[:, -1]
        units = [each for each in attached.tower_units if each is not None]
        for question, image in zip(QUESTIONS, test_images(), strict=True):
            one = build_inputs(tested.processor, [[user_message(question, [image])]])
            with torch.no_grad():
                alone.append(tested.model(**to_device(one, tested.model), use_cache=False).logits[0, -1])
    if not units:
        return LawResult(law, "does not hold", note="the tower dropped nothing")
    kept, total = sum(len(each.kept) for each in units), sum(len(each.of) for each in units)
    note = f"{kept} of {total} units ran through the tower"
    return LawResult.of(law, relative_difference(torch.stack(alone), together), tested.tolerance, note)


def generated_with_a_cache(tested: ModelUnderTest) -> LawResult:
    with attach(tested.model, [HALF, KeepAll()]):
        cached, uncached = (generate_greedily(tested.model, tested.inputs, use_cache) for use_cache in (True, False))
    differences = [d for row in range(len(tested.real)) for d in step_differences(cached, uncached, row)]
    note = f"{len(differences)} of {STEPS * len(tested.real)} greedy steps compared"
    return LawResult.of("vision tower: generation with a cache = without", largest(differences), tested.tolerance, note)
