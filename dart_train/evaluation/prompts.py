"""From questions to model inputs: a batch of prompts, padded on the left, each made by the processor once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.chat_template import control_tokens
from ..data.collator import Collator
from ..data.encoder import Encoded, media_inputs, visual_token_ids
from ..models.prompts import chat_template, render, special_tokens
from .questions import Question

CACHE_BYTES = 256 * 2**20


class QuestionEncoder:
    """Every cell has the same questions, so the processor's output is cached, up to CACHE_BYTES.

    Raises ValueError for a processor that cannot build prompts: no chat template, no image token.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        chat_template(processor)
        self._visual_ids = torch.tensor(sorted(visual_token_ids(processor)))
        self._control_tokens = control_tokens(processor)
        self._collator = Collator(processor, side="left")
        self._cache: dict[tuple[str, ...], dict[str, Tensor]] = {}
        self._free_bytes = CACHE_BYTES

    def batch(self, questions: Sequence[Question]) -> dict[str, Tensor]:
        """Inputs of `generate`. Rows are processed one by one: some processors reject batches in which only some rows
        have images."""
        features = self._collator([Encoded(self.features(question)) for question in questions])
        return {name: value for name, value in features.items() if name != "labels"}

    def features(self, question: Question) -> dict[str, Tensor]:
        key = (question.set, question.id, question.key)
        if key not in self._cache:
            features = self._process(question)
            size = sum(tensor.nbytes for tensor in features.values())
            if size > self._free_bytes:
                return features
            self._free_bytes -= size
            self._cache[key] = features
        return self._cache[key]

    def _process(self, question: Question) -> dict[str, Tensor]:
        for text in (text for turn in question.turns for text in turn.texts):
            token = next((token for token in self._control_tokens if token in text), None)
            if token is not None:
                raise ValueError(
                    f"{question.set}, question {question.id}: its text contains the control token {token!r}; remove it"
                )
        text, media = render(self.processor, question.messages), media_inputs(question.media(self.processor))
        options = {**media, **special_tokens(self.processor, text)}
        features = self.processor(text=[text], return_tensors="pt", **options)
        return {name: value for name, value in features.items() if isinstance(value, Tensor)}

    def visual_tokens(self, ids: Tensor) -> list[int]:
        """ids [B, L] -> the number of visual tokens of each row."""
        return [int(number) for number in torch.isin(ids, self._visual_ids).sum(1)]
