"""Laws of inputs that models handle differently: padding on the right, text alone, caches, later turns, windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..hooks import attach
from ..hooks.reference import masked_logits, plain_logits
from ..hooks.transformers_compat import cache_argument, cache_in_output
from ..models.prompts import build_inputs, to_device, user_message
from ..models.structure import find_parts
from ..reduction import KeepAll, Reducer
from .measures import (
    QUESTIONS,
    LawResult,
    ModelUnderTest,
    generate_greedily,
    largest,
    relative_difference,
    step_differences,
    test_images,
)


class NotComparable(Exception):
    """The plain model does not run these inputs, so there is nothing to compare with."""


def text_alongside(tested: ModelUnderTest, reducer: Reducer) -> LawResult:
    """Padding on the right, and a row of text that is longer than the rows with images: it keeps its full length."""
    law, model = f"{reducer.name}: right padding, a longer text row", tested.model
    try:
        inputs = pad_right(with_text_row(tested))
        plain = compared(partial(plain_logits, model, inputs))
    except NotComparable as reason:
        return LawResult(law, "not checked", note=str(reason))
    with torch.no_grad():
        with attach(model, KeepAll(layer=reducer.layer)):
            kept_all = model(**inputs, use_cache=False).logits
        with attach(model, reducer) as attached:
            short, kept = model(**inputs, use_cache=False).logits, attached.last
        differences = [relative_difference(kept_all, plain, inputs["attention_mask"].bool())]
        if kept is not None and not merges(reducer):
            try:
                wanted = masked_logits(model, inputs, [(reducer.layer, kept.mask)])
            except NotImplementedError as refusal:
                return LawResult(law, "not checked", note=str(refusal))
            differences.append(relative_difference(short, wanted, kept.mask))
    return LawResult.of(law, largest(differences), tested.tolerance, f"{inputs['input_ids'].shape[1]} tokens a row")


def cached_prefill(tested: ModelUnderTest, reducer: Reducer) -> LawResult:
    law = f"{reducer.name}: prefill with a cache = without"
    with torch.no_grad(), attach(tested.model, reducer) as attached:
        without, kept = tested.logits(), attached.last
        cached = tested.model(**tested.inputs, use_cache=True).logits
    where = tested.real if kept is None else kept.mask
    return LawResult.of(law, relative_difference(cached, without, where), tested.tolerance)


def second_turn(tested: ModelUnderTest, reducer: Reducer) -> LawResult:
    """A second image and question after the cache of the first ones, in which nothing is dropped."""
    law, model = "keep-all: an image in a second turn", tested.model
    turns = [to_device(build_inputs(tested.processor, [[user_message(q, [image])]]), model)
             for q, image in zip(QUESTIONS, test_images(), strict=True)]  # fmt: skip
    first, later = turns
    later["attention_mask"] = torch.cat([first["attention_mask"], later["attention_mask"]], 1)

    def run() -> Tensor:
        with torch.no_grad():
            cache = cache_in_output(model(**first, use_cache=True))
            logits: Tensor = model(**later, **{cache_argument(model.forward): cache}, use_cache=True).logits
        return logits

    try:
        wanted = compared(run)
        with attach(model, KeepAll(layer=reducer.layer)):
            logits = run()
    except (NotComparable, NotImplementedError) as reason:
        return LawResult(law, "not checked", note=str(reason))
    return LawResult.of(law, relative_difference(logits, wanted), tested.tolerance, f"at layer {reducer.layer}")


def past_window(tested: ModelUnderTest, reducer: Reducer) -> LawResult | None:
    """Generation past a sliding window, which is made small for this; None for models without one."""
    law, config = f"{reducer.name}: generation past a window", find_parts(tested.model).text_config
    if getattr(config, "sliding_window", None) is None:
        return None
    ids = tested.inputs["input_ids"][0].cpu()
    visual = torch.isin(ids, torch.tensor(find_parts(tested.model).visual_ids)).nonzero()
    window = len(ids) - int(visual.median())  # it begins in the middle of the first row's image
    try:
        with small_window(find_parts(tested.model).text, window), attach(tested.model, reducer):
            cached, uncached = (generate_greedily(tested.model, tested.inputs, use) for use in (True, False))
    except NotImplementedError as refusal:
        return LawResult(law, "not checked", note=str(refusal))
    differences = [d for row in range(len(tested.real)) for d in step_differences(cached, uncached, row)]
    return LawResult.of(law, largest(differences), tested.tolerance, f"a window of {window}")


def merges(reducer: Reducer) -> bool:
    return reducer.merge != "none" or type(reducer).merge_targets is not Reducer.merge_targets


def compared(run: Callable[[], Tensor]) -> Tensor:
    """What the plain model gives."""
    try:
        with torch.no_grad():
            return run()
    except Exception as error:
        raise NotComparable(f"the model itself fails: {type(error).__name__}: {error}".split("\n")[0]) from error


def with_text_row(tested: ModelUnderTest) -> dict[str, Any]:
    """The batch under test with a third row, of text alone."""
    words, processor = QUESTIONS[1], tested.processor
    tokens = len(processor.tokenizer(words)["input_ids"])
    text = " ".join([words] * (tested.real.shape[1] // tokens + 1))
    rows = [[user_message(q, [image])] for q, image in zip(QUESTIONS, test_images(), strict=True)]
    try:
        return to_device(build_inputs(processor, [*rows, [user_message(text)]]), tested.model)
    except Exception as error:
        raise NotComparable(f"the processor takes no row without an image: {type(error).__name__}: {error}") from error


def pad_right(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Left-padded inputs with their padding on the right."""
    mask = inputs["attention_mask"]
    shifts = (mask == 0).sum(1).tolist()

    def rolled(x: Tensor) -> Tensor:
        return torch.stack([row.roll(-shift, 0) for row, shift in zip(x, shifts, strict=True)])

    aligned = {name for name, x in inputs.items() if isinstance(x, Tensor) and x.shape == mask.shape}
    return {name: rolled(x) if name in aligned else x for name, x in inputs.items()}


@contextmanager
def small_window(text: nn.Module, window: int) -> Iterator[None]:
    """Inside, the sliding layers of a decoder have a window of so many places."""
    holders: list[Any] = [holder for holder in (text.config, *text.modules())
               if isinstance(getattr(holder, "sliding_window", None), int)]  # fmt: skip
    before = [holder.sliding_window for holder in holders]
    try:
        for holder in holders:
            holder.sliding_window = window
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.sliding_window = value
