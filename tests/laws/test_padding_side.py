"""The same tokens are kept with padding on the left, on the right and without any, with a family record and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import DART, attach
from dart_train.models.families import GENERIC
from dart_train.models.families.lfm2_vl import LFM2_VL
from dart_train.models.structure import find_parts
from tests.zoo import FAMILIES, make_batch
from tests.zoo.lfm2 import build_lfm2, lfm2_batch

COUNTS = (1, 2, 0)  # images of each row


def rows_of(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Each row of a batch alone, without padding and with its own images."""
    rows, first = [], 0
    for row, number in enumerate(COUNTS):
        real = batch["attention_mask"][row].bool()
        alone = {}
        for name, x in batch.items():
            if x.shape == batch["attention_mask"].shape:
                alone[name] = x[row, real][None]
            elif number:
                alone[name] = x[first : first + number]
        rows.append(alone)
        first += number
    return rows


def chosen(model: Any, batches: list[dict[str, Tensor]]) -> list[list[int]]:
    """Of each row with images, the kept tokens, counted without padding."""
    found = []
    with torch.no_grad(), attach(model, DART(keep=5, image_pivots=2, text_pivots=2)) as attached:
        for batch in batches:
            model(**batch)
            if attached.last is not None:
                real = batch["attention_mask"].bool()
                found += [attached.last.mask[row][real[row]].nonzero().flatten().tolist() for row in range(len(real))]
    return found[:2]  # the third row is text


@pytest.mark.parametrize("kind", ["lfm2", "unknown"])
def test_padding_does_not_decide_what_is_kept(kind: str) -> None:
    if kind == "lfm2":
        model: Any = build_lfm2()
        left, right = (lfm2_batch(COUNTS, side) for side in ("left", "right"))
        assert find_parts(model).family is LFM2_VL
    else:
        model = FAMILIES["llava"].model()
        model.config.model_type = "somebody_elses"
        left, right = (make_batch("llava", images=COUNTS, padding_side=side) for side in ("left", "right"))
        assert find_parts(model).family is GENERIC
    assert not find_parts(model).own_positions
    assert chosen(model, [left]) == chosen(model, [right]) == chosen(model, rows_of(left))


def test_positions_that_a_model_computes_from_grids_are_left_to_it() -> None:
    model = FAMILIES["qwen2_vl"].model()
    model.config.model_type = "somebody_elses"
    assert find_parts(model).family is GENERIC and find_parts(model).own_positions
