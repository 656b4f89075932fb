"""`bench decode`: a token of an answer behind a picture, and what its cache really takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..hooks.transformers_compat import cache_argument, cache_in_output
from ..profiling.device import DevicePeak
from ..profiling.memory import kv_cache_bytes
from ..profiling.op_count import count_ops
from . import sidebyside
from .options import FULL, NOTHING, OURS, PIXELS, scale_of
from .shapes import Shape
from .sidebyside import Bound, compare, each_shape, tokens_seen
from .subject import Subject, subject_of
from .table import Row, Table, percent
from .ways import LAYER, Way, ways_of

TOKENS = 8  # in each round
NAMES = (FULL, NOTHING, OURS, PIXELS)


def add_options(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> list[Table]:
    return [Table("Decode", COLUMNS, each_shape(options, measure), NOTES)]


def measure(shape: Shape, peak: DevicePeak, options: argparse.Namespace) -> list[dict[str, Any]]:
    subject = subject_of(shape, scale_of(options), 1, options.device, options.dtype)
    ways = ways_of(subject.model, shape, subject.kept, "expand", NAMES)
    answers = {way.name: Answer.begun(subject, way) for way in ways}
    sizes = {name: answer.size() for name, answer in answers.items()}
    bounds = {OURS: _bound(answers, ways, peak), NOTHING: Bound(1.0, 1.0)}
    found = compare(subject, ways, lambda way: answers[way.name].more, bounds, options, f"{shape.key} decode")
    for row in found:
        row["visual tokens"] = answers[row["way"]].tokens
        row |= {"cache bytes": sizes[row["way"]], "share": sizes[row["way"]] / sizes[FULL]}
        row["true share"] = subject.true_share if row["way"] == OURS else None
    return found


class Answer:
    """A sequence that goes on from a prefilled cache, and grows in every round by as many tokens as the others do."""

    def __init__(self, subject: Subject, cache: Any, token: Tensor, tokens: int) -> None:
        """token [1, 1]: the first one; tokens: visual ones behind layer K."""
        self.subject, self.cache, self.token, self.tokens = subject, cache, token, tokens

    @classmethod
    @torch.no_grad()
    def begun(cls, subject: Subject, way: Way) -> Answer:
        with way.ready():
            batch = subject.given(way.few)[0]
            output = subject.model(**batch, use_cache=True, logits_to_keep=1)
        return cls(subject, cache_in_output(output), output.logits[:, -1:].argmax(-1), tokens_seen(subject, way))

    @torch.no_grad()
    def more(self) -> None:
        """The next tokens, whichever: time does not depend on them."""
        given = {cache_argument(self.subject.model.forward): self.cache}
        for _ in range(TOKENS):
            self.subject.model(input_ids=self.token, use_cache=True, **given)

    def size(self) -> int:
        """Bytes, as allocated."""
        return kv_cache_bytes(self.cache)


def _bound(answers: Mapping[str, Answer], ways: Sequence[Way], peak: DevicePeak) -> Bound:
    """Both counted: a token runs the same operations over a full cache and over a short one."""
    works = {}
    for way in ways:
        if way.name in (FULL, OURS):
            with way.ready():
                works[way.name] = count_ops(answers[way.name].more, peak)
    full, short = works[FULL], works[OURS]
    return Bound(full.flops / short.flops, full.seconds / short.seconds)


def _shares(row: Row) -> str:
    text = percent(row["share"]) if "share" in row else ""
    return text + (f" (true share {percent(row['true share'])})" if row.get("true share") else "")


COLUMNS: dict[str, Callable[[Row], str]] = {
    name: write
    for name, write in sidebyside.COLUMNS.items()
    if name not in ("bound by FLOPs alone", "peak memory, GiB")
}
COLUMNS = {
    **dict(list(COLUMNS.items())[:6]),
    "cache, of full": _shares,
    "cache, MB": lambda row: f"{row['cache bytes'] / 1e6:.3g}" if "cache bytes" in row else "",
    **dict(list(COLUMNS.items())[6:]),
}
NOTES = (
    f"One row; times are of {TOKENS} tokens. Faster: against full tokens, round by round; every answer grows by as "
    "many tokens in a round. Cache: bytes of its storages behind the prefill, as allocated.",
    "Bound: the operations of a token counted over a full cache and over a short one, each at the slower of this "
    "device's best FLOPs and bytes a second: weights and caches read, and caches copied as they grow.",
    f"True share: layers 0 to {LAYER - 1} full, the others short. Tokens that are only masked stay in a cache.",
)
