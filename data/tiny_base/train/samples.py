"""What is learned from: scenes as pixels, patch labels and questions, the n-th always the same."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.shapes import Scene, draw, patch_labels, questions, scene

from .processor import ASSISTANT, END, IMAGE, START, USER, tokenizer
from .recipe import Base, Stage

NO_LABEL = -100
Asked = tuple[str, str]  # a question and its answer


@dataclass(frozen=True)
class PackedQuestions:
    """Questions behind one picture: `apart`, each blind for the others, as if it stood there alone; or one after the
    other, as a conversation.

    ids, labels, positions, group [B, L]; group is 0 before the questions, then 1, 2, ...; -1 is padding.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    group: Tensor
    apart: bool = True

    def mask(self, image: int) -> tuple[Tensor, Tensor]:
        """[B, 1, L, L] who may look at whom; and the same, but text does not look at the picture."""
        mine, theirs = self.group.unsqueeze(2), self.group.unsqueeze(1)
        causal = torch.ones(self.ids.shape[1], self.ids.shape[1], dtype=torch.bool).tril()
        near = (theirs == 0) | (mine == theirs) if self.apart else theirs <= mine
        blind = causal & near & ~((mine > 0) & (self.ids == image).unsqueeze(1))
        return (causal & near).unsqueeze(1), blind.unsqueeze(1)


@dataclass(frozen=True)
class Lesson:
    """labels [B, rows, columns, 6]: what, colour, character, whether the patch stands for its item, row, column.
    shown [B, patches]: which of them are in the sequence."""

    scenes: list[Scene]
    labels: Tensor
    shown: Tensor
    packed: PackedQuestions


def lesson(recipe: Base, stage: Stage, step: int, offset: int = 0) -> Lesson:
    """The `step`-th of a stage, whose first scene is number `offset` of the training scenes."""
    first, where = offset + step * stage.batch_size, recipe.pictures
    scenes = [scene(where.seed, "train", first + i, where.difficulty) for i in range(stage.batch_size)]
    asked = [_asked(one, stage.questions) for one in scenes]
    labels = torch.stack([_labels(one, recipe.vision.patch) for one in scenes])
    shown = (labels[..., 0] > 0).flatten(1) | stage.background
    talk = int((step + 1) * stage.conversations) > int(step * stage.conversations)
    return Lesson(scenes, labels, shown, pack(asked, shown, apart=not talk))


def pixels(lesson: Lesson, images: Any) -> Tensor:
    return images([draw(one) for one in lesson.scenes], return_tensors="pt")["pixel_values"]


def _asked(one: Scene, most: int) -> list[Asked]:
    return [(question.question, question.answer) for question in questions(one)[:most]]


def _labels(one: Scene, patch: int) -> Tensor:
    labels = torch.from_numpy(patch_labels(one, patch))
    anchors = np.zeros(labels.shape[:2], dtype=np.int64)
    for item in one.items:
        middle = item.size // 2
        across, down = (0, 0) if item.text else (middle, middle)
        anchors[(item.y + down) // patch, (item.x + across) // patch] = 1
    there = np.indices(anchors.shape)
    return torch.cat([labels, torch.from_numpy(np.stack([anchors, *there], axis=-1))], dim=-1)


@cache
def _tokenizer() -> Any:
    return tokenizer()


@cache
def _ids(text: str) -> tuple[int, ...]:
    return tuple(_tokenizer()(text, add_special_tokens=False)["input_ids"])


def pack(asked: list[list[Asked]], shown: Tensor, apart: bool = True) -> PackedQuestions:
    """asked: for each picture its questions. Patches that are not `shown` leave a gap in the positions."""
    rows = [_row(pairs, patches, apart) for pairs, patches in zip(asked, shown, strict=True)]
    length = max(len(row[0]) for row in rows)
    fill = (_tokenizer().pad_token_id, NO_LABEL, 0, -1)
    columns = [[row[i] + [fill[i]] * (length - len(row[i])) for row in rows] for i in range(4)]
    ids, labels, positions, group = (torch.tensor(column) for column in columns)
    return PackedQuestions(ids, labels, positions, group, apart)


def _row(pairs: list[Asked], shown: Tensor, apart: bool) -> tuple[list[int], ...]:
    start, image, end = _ids(START + USER), _ids(IMAGE), _ids(END)
    ids = [*start, *image * int(shown.sum())]
    positions = [*range(len(start)), *(len(start) + shown.nonzero().flatten()).tolist()]
    labels, group, behind = [NO_LABEL] * len(ids), [0] * len(ids), len(start) + len(shown)
    for number, (question, answer) in enumerate(pairs, 1):
        lead = "" if apart or number == 1 else USER
        asked, said = _ids(lead + question + ASSISTANT), (*_ids(answer), *end)
        ids += asked + said
        labels += [*[NO_LABEL] * len(asked), *said]
        positions += range(behind, behind + len(asked) + len(said))
        group += [number] * (len(asked) + len(said))
        behind += 0 if apart else len(asked) + len(said)
    return ids, labels, positions, group
