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
    law = "keep-all: an image in a second turn"
    first, later = two_turns(tested)
    try:
        wanted = compared(lambda: continued_logits(tested.model, first, later)[0])
        with attach(tested.model, KeepAll(layer=reducer.layer)):
            logits, _ = continued_logits(tested.model, first, later)
    except (NotComparable, NotImplementedError) as reason:
        return LawResult(law, "not checked", note=str(reason))
    return LawResult.of(law, relative_difference(logits, wanted), tested.tolerance, f"at layer {reducer.layer}")


def reduced_second_turn(tested: ModelUnderTest, reducer: Reducer) -> LawResult:
    """Both turns reduced, compared with one full-length forward in which the mask hides what either dropped."""
    law, model = f"{reducer.name}: an image in a second turn", tested.model
    if merges(reducer):
        return LawResult(law, "not checked", note="dropped tokens are merged into kept ones")
    first, later = two_turns(tested)
    try:
        both = joined(first, later)
        plain = compared(lambda: continued_logits(model, first, later)[0])
        together = compared(partial(plain_logits, model, both))[:, -plain.shape[1] :]
        if not relative_difference(together, plain) <= tested.tolerance:
            raise NotComparable("the model itself answers differently from a cache than from both turns at once")
        with attach(model, reducer) as attached:
            logits, keeps = continued_logits(model, first, later, lambda: attached.last)
        with torch.no_grad():
            wanted = masked_logits(model, both, [(reducer.layer, torch.cat(keeps, 1))])[:, -logits.shape[1] :]
    except (NotComparable, NotImplementedError) as reason:
        return LawResult(law, "not checked", note=str(reason))
    return LawResult.of(law, relative_difference(logits, wanted, keeps[1]), tested.tolerance)


def two_turns(tested: ModelUnderTest) -> tuple[dict[str, Any], dict[str, Any]]:
    """An image and a question each; the mask of the later one covers both."""
    first, later = (
        to_device(build_inputs(tested.processor, [[user_message(question, [image])]]), tested.model)
        for question, image in zip(QUESTIONS, test_images(), strict=True)
    )
    later["attention_mask"] = torch.cat([first["attention_mask"], later["attention_mask"]], 1)
    return first, later


def continued_logits(
    model: Any, first: Mapping[str, Any], later: Mapping[str, Any], kept: Callable[[], Any] = lambda: None
) -> tuple[Tensor, list[Tensor]]:
    """Logits of the later turn, and what each forward kept: `kept` after it, or all."""
    with torch.no_grad():
        cache = cache_in_output(model(**first, use_cache=True))
        keeps = [first["attention_mask"].bool() if kept() is None else kept().mask]
        logits: Tensor = model(**later, **{cache_argument(model.forward): cache}, use_cache=True).logits
        keeps.append(torch.ones(logits.shape[:2]).bool().to(logits.device) if kept() is None else kept().mask)
    return logits, keeps


def joined(first: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Two turns of one row as one sequence; images in their order."""
    length = first["input_ids"].shape
    both = {"attention_mask": later["attention_mask"]}
    for name, x in first.items():
        if name not in both and isinstance(x, Tensor):
            both[name] = torch.cat([x, later[name]], 1 if x.shape == length else 0)
    return both


def same_choice(tested: ModelUnderTest, reducer: Reducer) -> LawResult | None:
    """The share of the tokens that padding on the left and on the right select differently."""
    law, found = f"{reducer.name}: padding does not decide what is kept", []
    with torch.no_grad(), attach(tested.model, reducer) as attached:
        for inputs in (tested.inputs, pad_right(tested.inputs)):
            tested.model(**inputs, use_cache=False)
            if attached.last is None:
                return None
            found.append(attached.last.mask[inputs["attention_mask"].bool()])
    return LawResult.of(law, float((found[0] != found[1]).float().mean()), tested.tolerance)


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
