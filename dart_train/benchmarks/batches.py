"""What a model is given: rows of one picture in the middle of text, random pixels, and in training an answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .shapes import IMAGE, Grid, Shape

BEFORE, BEHIND, ANSWER = 4, 36, 24  # tokens of text before the picture, behind it, and to be learnt
_WORD = 9  # the least id of a word
Inputs = dict[str, Tensor]


def inputs_of(config: Any, shape: Shape, rows: int, answer: int, few: bool = False, seed: int = 0) -> Inputs:
    """On the host. few: of the smaller picture; answer: so many supervised tokens, 0: a prompt."""
    chance = torch.Generator().manual_seed(seed)
    grid = shape.few if few else shape.grid
    pictures = _PICTURES[shape.key](config, grid, rows, chance)
    tokens = visual_tokens(shape, grid)
    length = BEFORE + tokens + BEHIND + answer
    words = config.get_text_config().vocab_size
    ids = torch.randint(_WORD, words, (rows, length), generator=chance)
    ids[:, BEFORE : BEFORE + tokens] = IMAGE
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pictures}
    if shape.key.startswith("qwen"):
        batch["mm_token_type_ids"] = (ids == IMAGE).long()
    if answer:
        batch["labels"] = torch.full_like(ids, -100)
        batch["labels"][:, -answer:] = ids[:, -answer:]
    return batch


def visual_tokens(shape: Shape, grid: Grid) -> int:
    """That a picture of such a grid makes."""
    cells = grid[0] * grid[1]
    if shape.key == "llava_next":  # four tiles, each row of two of them with an end, and the whole picture
        return 5 * cells + 2 * grid[0]
    return cells // 4 if shape.key.startswith("qwen") else cells


def _llava(config: Any, grid: Grid, rows: int, chance: torch.Generator) -> Inputs:
    return {"pixel_values": torch.rand(rows, 3, *_pixels(config, grid), generator=chance)}


def _llava_next(config: Any, grid: Grid, rows: int, chance: torch.Generator) -> Inputs:
    height, width = _pixels(config, grid)
    pixels = torch.rand(rows, 5, 3, height, width, generator=chance)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[2 * height, 2 * width]] * rows)}


def _qwen(config: Any, grid: Grid, rows: int, chance: torch.Generator) -> Inputs:
    vision, patches = config.vision_config, rows * grid[0] * grid[1]
    numbers = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.rand(patches, numbers, generator=chance)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, *grid]] * rows)}


def _pixels(config: Any, grid: Grid) -> Grid:
    side = config.vision_config.patch_size
    return side * grid[0], side * grid[1]


_PICTURES = {"llava": _llava, "llava_next": _llava_next, "qwen2_5_vl": _qwen, "qwen3_vl": _qwen}
