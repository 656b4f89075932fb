"""From a question to what a model reads: the family's own template and processor, padding on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.chat_template import control_tokens
from ..data.collator import Collator
from ..data.encoder import Encoded, visual_token_ids
from ..models.prompts import build_inputs, chat_template
from .questions import Question

REMEMBERED = 256 * 2**20  # bytes


class Prompts:
    """Raises ValueError for a processor that cannot be asked: no chat template, no image token.

    Every cell asks the same questions: what the processor made of them is kept, as far as memory is given to it.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        chat_template(processor)
        self.visual = torch.tensor(sorted(visual_token_ids(processor)))
        self.control = control_tokens(processor)
        self.collator = Collator(processor, side="left")
        self._made: dict[tuple[str, ...], dict[str, Tensor]] = {}
        self._room = REMEMBERED

    def batch(self, questions: Sequence[Question]) -> dict[str, Tensor]:
        """For `generate`: each row through the processor alone, so that no family minds rows without pictures."""
        features = self.collator([Encoded(self.features(question)) for question in questions])
        return {name: value for name, value in features.items() if name != "labels"}

    def features(self, question: Question) -> dict[str, Tensor]:
        mark = (question.set, question.id, question.key)
        if mark in self._made:
            return self._made[mark]
        made = self._make(question)
        size = sum(tensor.nbytes for tensor in made.values())
        if size <= self._room:
            self._room -= size
            self._made[mark] = made
        return made

    def _make(self, question: Question) -> dict[str, Tensor]:
        self._refuse_forged(question)
        return build_inputs(self.processor, [question.messages], [question.images()])

    def visual_tokens(self, ids: Tensor) -> list[int]:
        """Of each row of ids [B, L]."""
        return [int(number) for number in torch.isin(ids, self.visual).sum(1)]

    def _refuse_forged(self, question: Question) -> None:
        for text in (text for turn in question.turns for text in turn.texts):
            found = next((token for token in self.control if token in text), None)
            if found is not None:
                raise ValueError(f"{question.set}, question {question.id}: the control token {found!r} is in its text")
