"""Rows of the language stages: one image, and several questions about it that do not attend to each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from data.scenes.rng import PortableRandom
from data.things import KINDS, ThingScene, questions, scene
from data.things.patches import BACKGROUND, patch_words

from .recipe import LanguageStage

IGNORED = -100
QuestionAnswer = tuple[str, str]


@dataclass(frozen=True)
class RowBatch:
    """ids, labels, positions, group: [B, L]. group is 0 before the questions, then 1, 2, ...; -1 is padding.
    visible: [B, patches], the patches that are in the row; the positions of others remain free."""

    indices: list[int]
    ids: Tensor
    labels: Tensor
    positions: Tensor
    group: Tensor
    visible: Tensor

    def mask(self) -> Tensor:
        """[B, 1, L, L], True where a position may attend: causal, the image and the same question."""
        query, key = self.group.unsqueeze(2), self.group.unsqueeze(1)
        length = self.ids.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool).tril() & ((key == 0) | (query == key))
        return allowed.unsqueeze(1)


class RowMaker:
    """Batch `step` of a stage is always the same."""

    def __init__(self, tokenizer: Any, patch: int, image_token: int) -> None:
        self.tokenizer, self.patch, self.image_token = tokenizer, patch, image_token
        self.encode = cache(lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))

    def batch(
        self, stage: LanguageStage, seed: int, images: int, step: int, offset: int, split: str = "train"
    ) -> RowBatch:
        """offset: the index of the stage's first image; after the last image the first one follows again."""
        first = offset + step * stage.batch_size
        indices = [(first + place) % images for place in range(stage.batch_size)]
        rounds = [(first + place) // images for place in range(stage.batch_size)]
        asked, visible = [], []
        for index, turn in zip(indices, rounds, strict=True):
            rng = PortableRandom(f"row-{index}-{turn}-{stage.patches}")
            one = scene(seed, split, index)
            visible.append(self._visible(one, stage.patches, rng))
            asked.append(_ask(one, stage, rng))
        return self.pack(asked, torch.stack(visible), indices)

    def pack(self, asked: list[list[QuestionAnswer]], visible: Tensor, indices: list[int]) -> RowBatch:
        """The questions of each image, after those of its patches that are `visible`: [B, patches]."""
        rows = [self._row(pairs, patches) for pairs, patches in zip(asked, visible, strict=True)]
        length = max(len(row[0]) for row in rows)
        fill = (self.tokenizer.pad_token_id, IGNORED, 0, -1)
        columns = [[row[i] + [fill[i]] * (length - len(row[i])) for row in rows] for i in range(4)]
        ids, labels, positions, group = (torch.tensor(column) for column in columns)
        return RowBatch(indices, ids, labels, positions, group, visible)

    def _visible(self, one: ThingScene, count: int, rng: PortableRandom) -> Tensor:
        """[patches]: `count` patches, at least a quarter of them background unless all are visible."""
        shown = (patch_words(one, self.patch) != BACKGROUND).flatten()
        of_things, others = (list(map(int, places.nonzero()[0])) for places in (shown, ~shown))
        things = rng.sample(of_things, min(len(of_things), count - min(len(others), count // 4)))
        kept = things + rng.sample(others, min(len(others), count - len(things)))
        visible = torch.zeros(len(shown), dtype=torch.bool)
        visible[kept] = True
        return visible

    def _row(self, pairs: list[QuestionAnswer], visible: Tensor) -> tuple[list[int], ...]:
        """ids, labels, positions and groups of one image and its questions."""
        start = self.encode("<|im_start|>user\n")
        ids = [*start, *[self.image_token] * int(visible.sum())]
        positions = [*range(len(start)), *(len(start) + visible.nonzero().flatten()).tolist()]
        labels, group, position = [IGNORED] * len(ids), [0] * len(ids), len(start) + len(visible)
        for number, (question, answer) in enumerate(pairs, 1):
            asked = self.encode(question + "<|im_end|>\n<|im_start|>assistant\n")
            answered = self.encode(answer + "<|im_end|>")
            length = len(asked) + len(answered)
            ids += asked + answered
            labels += [*[IGNORED] * len(asked), *answered]
            positions += range(position, position + length)
            group += [number] * length
        return ids, labels, positions, group


def _ask(one: ThingScene, stage: LanguageStage, rng: PortableRandom) -> list[QuestionAnswer]:
    """Pairs of question and answer: naming, and other kinds."""
    naming = questions(one, ("what",), each=12)
    others = questions(one, [kind for kind in KINDS if kind != "what"], each=3)
    drawn = rng.sample(naming, min(stage.naming, len(naming))) + rng.sample(others, min(stage.others, len(others)))
    return [(one.question, one.answer) for one in drawn]
