"""Pairs of answers (DPO) in a plan: each is two rows, the prompt with the chosen and with the rejected answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..data.encoder import Encoder
from ..data.issues import BadRowError
from ..data.sample import Sample
from ..data.videos import media_shape
from ..training.preference.rows import read_row
from .rows import PlannedRow, RowLocation

NOT_GRPO = (
    "train.method: grpo cannot be planned: most of its time goes into rollouts, and how long they are is the model's "
    "own choice. Train a few steps on the device instead (train.max_steps=5): metrics.jsonl then has step_time and the "
    "lengths of completions"
)
NOTES = (
    "dpo: a sample is one of the two conversations of a pair, and train.per_device_batch_size counts pairs",
    "the reference runs forward through vision tower, decoder and head, and keeps the tokens that the policy chose",
    "TRL computes logits in tiles: the memory of logits is an upper bound",
)


@dataclass(frozen=True)
class AnswerLocation(RowLocation):
    """One conversation of a pair. answer: 0 chosen, 1 rejected."""

    answer: int = 0

    def sample(self) -> Sample:
        row = read_row(self.row(), True, self.source.row_id(self.index))
        return row.conversations()[self.answer]


def measure_pair(encoder: Encoder, max_length: int | None, place: RowLocation, row: Any) -> Sequence[PlannedRow]:
    """Both conversations; max_length: at which TRL cuts the answers."""
    source, index = place.source, place.index
    locations = [AnswerLocation(source, index, number) for number in (0, 1)]
    try:
        pair = read_row(row, True, source.row_id(index))
        shapes = tuple(media_shape(source.store, ref) for ref in pair.prompt.media)
        return [
            _measure(encoder, max_length, location, sample, shapes)
            for location, sample in zip(locations, pair.conversations(), strict=True)
        ]
    except BadRowError as bad:
        return [PlannedRow(location, fault=bad.issue) for location in locations]


def _measure(
    encoder: Encoder, max_length: int | None, location: RowLocation, sample: Sample, shapes: tuple[Any, ...]
) -> PlannedRow:
    length = encoder.measure(sample, shapes)
    cut = 0 if max_length is None else max(0, length.total - max_length)
    answer = encoder.count_targets(sample) - cut
    if answer <= 0:
        raise BadRowError("nothing_supervised", f"data.max_length {max_length} ends before the answer")
    return PlannedRow(
        location,
        text=length.total - cut - sum(length.visual),
        visual=length.visual,
        answer_starts=length.answer_starts,
        prompt_tokens_after=length.prompt_tokens_after,
        targets=answer,
        sizes=tuple(shape for shape in shapes if isinstance(shape, tuple)),
    )
