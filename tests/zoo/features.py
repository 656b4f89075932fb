"""Batches made by hand, with the vision tower's output in place of pixels: for models without a processor here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

IMAGE, PAD = 10, 0
WORDS = range(20, 60)
SIZES = (16, 12, 9)  # tokens of the images in turn


def make_ids(
    images: Sequence[int] = (1, 2, 0), side: str = "left", labels: bool = False, sizes: Sequence[int] = SIZES
) -> tuple[dict[str, Tensor], list[int]]:
    """Row i has `images[i]` images, each followed by words; with labels, the last three words are supervised. Second:
    the number of tokens of each image."""
    chance = torch.Generator().manual_seed(0)

    def words(number: int) -> list[int]:
        return torch.randint(WORDS.start, WORDS.stop, (number,), generator=chance).tolist()

    used, rows = list[int](), list[list[int]]()
    for row, number in enumerate(images):
        ids = words(2 + row)
        for _ in range(number):
            used.append(sizes[len(used) % len(sizes)])
            ids += [IMAGE] * used[-1] + words(3)
        rows.append(ids + words(4 + row))
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros_like(ids)
    for row, found in enumerate(rows):
        place = slice(length - len(found), length) if side == "left" else slice(0, len(found))
        ids[row, place], mask[row, place] = torch.tensor(found), 1
    batch = {"input_ids": ids, "attention_mask": mask}
    if labels:
        to_end = mask.flip(1).cumsum(1).flip(1)
        batch["labels"] = ids.masked_fill((mask == 0) | (to_end > 3), -100)
    return batch, used


def feature_batch(
    width: int, images: Sequence[int] = (1, 2, 0), side: str = "left", labels: bool = False
) -> dict[str, Any]:
    """With features [tokens, width] of each image in `mm_encoder_outputs`."""
    batch, used = make_ids(images, side, labels)
    chance = torch.Generator().manual_seed(1)
    features = [torch.randn(number, width, generator=chance) for number in used]
    encoded = {"image": BaseModelOutputWithPooling(pooler_output=features)} if features else {}
    return {**batch, "mm_encoder_outputs": encoded}
