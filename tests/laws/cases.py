"""The cases that every law is held against."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from dart_train import REDUCERS, Reducer
from tests.zoo import FAMILIES, make_batch

NAMES = tuple(FAMILIES)
KERNELS = ("sdpa", "eager")
IMAGES = ((1,), (1, 2, 0), (2, 1))
ROUNDING = 2e-5  # relative, float32


@cache
def model_of(name: str, attn: str = "sdpa") -> Any:
    """Shared by tests that leave it as they found it."""
    return FAMILIES[name].model(attn)


@cache
def batch_of(name: str, images: tuple[int, ...] = (1, 2, 0), side: str = "left", labels: bool = False) -> Any:
    return make_batch(name, images=images, padding_side=side, labels=labels)


def reducer_of(method: str, keep: int | float = 8, **options: Any) -> Reducer:
    return REDUCERS[method](keep=keep, **options)


def new_tokens(model: Any, batch: dict[str, Tensor], number: int = 5, **options: Any) -> Tensor:
    """Generated ids only. Visual tokens are not generated: no model's forward takes them without a picture."""
    names = ("image_token_id", "image_token_index", "video_token_id")
    visual = {getattr(model.config, name, None) for name in names} - {None}
    options |= {"do_sample": False, "max_new_tokens": number, "min_new_tokens": number}
    ids = model.generate(**batch, suppress_tokens=sorted(visual), **options)
    return ids[:, batch["input_ids"].shape[1] :]
