"""Plans, checks and grouping count what the model will keep: row by row, without a model, exactly."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from dart_train import DART, FastV, Pooling, Random, Reducer, attach
from dart_train.data.collator import Collator
from dart_train.data.encoder import Encoder
from dart_train.data.formats import normalise
from dart_train.reduction import count_kept_by_stage
from tests.laws.cases import NAMES, model_of
from tests.zoo import FAMILIES, make_image

# Each row: questions and answers in turn; images adjacent, separated by text, in later turns, last, and none.
ROWS = (
    ("<image>What is red?", "A cat."),
    ("<image><image>Which of <image> them?", "The first one."),
    ("<image>a", "b", "And <image>that <image>", "c", "thanks", "d"),
    ("<image>", "A", "<image>", "B", "Is it?", "C", "<image><image>", "D"),
    ("Nothing to see?", "No."),
)
CHOICES: tuple[tuple[Reducer, ...], ...] = (
    *((DART(keep=keep, per=per),) for keep in (7, 0.3, 0.777) for per in ("sample", "image")),
    (DART(keep=20, rule="paper"),),
    (DART(keep=0.4, rule="paper", text_pivots=40),),
    (DART(keep=11, rule="paper", per="image", text_pivots=30),),
    (Pooling(keep=0.21, layer=1), Random(keep=9, layer=3)),
    (FastV(keep=5, layer=1), DART(keep=0.5, layer=3)),  # a later stage cannot restore dropped tokens
    (DART(keep=6, layer=1, per="image"), DART(keep=0.05, layer=2, per="image")),
)


@cache
def encoded(name: str) -> tuple[Any, list[Any]]:
    """The batch, and the measured length of each row."""
    encoder, rows, lengths = Encoder(FAMILIES[name].processor()), [], []
    for number, texts in enumerate(ROWS):
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        shown = [make_image(10 * number + i) for i in range("".join(texts).count("<image>"))]
        images = {"images": [f"{i}.png" for i in range(len(shown))]} if shown else {}
        sample = normalise({"messages": turns, **images})
        lengths.append(encoder.measure(sample, tuple(image.size for image in shown)))
        rows.append(encoder.encode(sample, shown))
    return Collator(encoder.processor)(rows), lengths


@pytest.mark.parametrize("name", NAMES)
def test_counted_tokens_are_those_that_the_model_keeps(name: str) -> None:
    batch, lengths = encoded(name)
    model = model_of(name)
    for stages in CHOICES:
        with torch.no_grad(), attach(model, stages) as attached:
            model(**batch, use_cache=False)
        kept = attached.last
        assert kept is not None
        counts_of = [count_kept_by_stage(stages, x.visual, x.answer_starts, x.prompt_tokens_after) for x in lengths]
        assert kept.visual_before == tuple(sum(x.visual) for x in lengths)
        assert kept.visual_after == tuple(counts[-1] for counts in counts_of), stages
        for stage, mask in enumerate(kept.stages):
            assert (mask & kept.visual).sum(1).tolist() == [counts[stage] for counts in counts_of]


def test_image_belongs_to_the_turn_of_the_next_answer() -> None:
    for name in NAMES:
        turns = [length.answer_starts for length in encoded(name)[1]]
        alike = [[each.count(turn) for turn in dict.fromkeys(each)] for each in turns]
        assert alike == [[1], [3], [1, 2], [1, 1, 2], []]
