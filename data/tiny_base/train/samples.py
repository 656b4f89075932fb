"""Training batches: scenes as pixels, patch labels and packed questions. Batch n is always the same."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.shapes import Scene, draw, patch_labels, questions, scene

from .processor import ASSISTANT, END, IMAGE, START, USER, make_tokenizer
from .recipe import BaseRecipe, Stage

IGNORED = -100
QuestionAnswer = tuple[str, str]


@dataclass(frozen=True)
class PackedQuestions:
    """Questions after one image. `independent`: no question attends to another, as if it were the only one; or one
    after the other, as a conversation.

    ids, labels, positions, group: [B, L]. group is 0 before the questions, then 1, 2, ...; -1 is padding."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    group: Tensor
    independent: bool = True


@dataclass(frozen=True)
class SceneBatch:
    """labels: [B, rows, columns, 6], for each patch: item, colour, character, whether it represents its item, row,
    column. visible: [B, patches], the patches that are in the sequence."""

    scenes: list[Scene]
    labels: Tensor
    visible: Tensor
    packed: PackedQuestions


def scene_batch(recipe: BaseRecipe, stage: Stage, step: int, offset: int = 0) -> SceneBatch:
    """Batch `step` of a stage. offset: the index of its first training scene."""
    first, source = offset + step * stage.batch_size, recipe.pictures
    scenes = [scene(source.seed, "train", first + i, source.difficulty) for i in range(stage.batch_size)]
    pairs = [_questions(one, stage.questions) for one in scenes]
    labels = torch.stack([_labels(one, recipe.vision.patch) for one in scenes])
    visible = (labels[..., 0] > 0).flatten(1) | stage.background
    conversation = int((step + 1) * stage.conversations) > int(step * stage.conversations)
    return SceneBatch(scenes, labels, visible, pack(pairs, visible, independent=not conversation))


def pixels(batch: SceneBatch, image_processor: Any) -> Tensor:
    """[B, 3, H, W]"""
    return image_processor([draw(one) for one in batch.scenes], return_tensors="pt")["pixel_values"]


def _questions(one: Scene, most: int) -> list[QuestionAnswer]:
    return [(question.question, question.answer) for question in questions(one)[:most]]


def _labels(one: Scene, patch: int) -> Tensor:
    """[rows, columns, 6]"""
    labels = torch.from_numpy(patch_labels(one, patch))
    anchors = np.zeros(labels.shape[:2], dtype=np.int64)  # the patch that represents an item
    for item in one.items:
        middle = item.size // 2
        across, down = (0, 0) if item.text else (middle, middle)
        anchors[(item.y + down) // patch, (item.x + across) // patch] = 1
    places = np.indices(anchors.shape)
    return torch.cat([labels, torch.from_numpy(np.stack([anchors, *places], axis=-1))], dim=-1)


@cache
def _tokenizer() -> Any:
    return make_tokenizer()


@cache
def _ids(text: str) -> tuple[int, ...]:
    return tuple(_tokenizer()(text, add_special_tokens=False)["input_ids"])


def pack(pairs: list[list[QuestionAnswer]], visible: Tensor, independent: bool = True) -> PackedQuestions:
    """pairs: the questions of each image. Patches that are not `visible` leave a gap in the positions."""
    rows = [_row(of_image, patches, independent) for of_image, patches in zip(pairs, visible, strict=True)]
    length = max(len(row[0]) for row in rows)
    fill = (_tokenizer().pad_token_id, IGNORED, 0, -1)
    columns = [[row[i] + [fill[i]] * (length - len(row[i])) for row in rows] for i in range(4)]
    ids, labels, positions, group = (torch.tensor(column) for column in columns)
    return PackedQuestions(ids, labels, positions, group, independent)


def _row(pairs: list[QuestionAnswer], visible: Tensor, independent: bool) -> tuple[list[int], ...]:
    """ids, labels, positions and groups of one image and its questions."""
    start, image, end = _ids(START + USER), _ids(IMAGE), _ids(END)
    ids = [*start, *image * int(visible.sum())]
    positions = [*range(len(start)), *(len(start) + visible.nonzero().flatten()).tolist()]
    labels, group, position = [IGNORED] * len(ids), [0] * len(ids), len(start) + len(visible)
    for number, (question, answer) in enumerate(pairs, 1):
        prefix = "" if independent or number == 1 else USER
        question_ids, answer_ids = _ids(prefix + question + ASSISTANT), (*_ids(answer), *end)
        length = len(question_ids) + len(answer_ids)
        ids += question_ids + answer_ids
        labels += [*[IGNORED] * len(question_ids), *answer_ids]
        positions += range(position, position + length)
        group += [number] * length
        position += 0 if independent else length
    return ids, labels, positions, group
