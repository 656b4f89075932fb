"""Models, batches and methods shared by the tests of the laws."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from dart_train import REDUCERS, Reducer
from tests.zoo import FAMILIES, make_batch

NAMES = tuple(FAMILIES)
KERNELS = ("sdpa", "eager")
IMAGES = ((1,), (1, 2, 0), (2, 1))
METHODS = tuple(method for method in REDUCERS if method != "fewer_pixels")  # inside a model it is keep_all
EAGER_TOO = ("llava", "qwen3_vl", "gemma3")
ROUNDING = 2e-5  # relative, float32


def method_on_family(each: int = 3) -> list[tuple[str, str]]:
    """(method, family): DART on every family, every other method on `each` of them in turn. A method never knows the
    family and the hooks never know the method, so that the full product would test the same again."""
    pairs = [("dart", name) for name in NAMES]
    others = [method for method in METHODS if method != "dart"]
    for number, method in enumerate(others):
        pairs += [(method, NAMES[(number * each + i) % len(NAMES)]) for i in range(each)]
    return pairs


@cache
def model_of(name: str, attn: str = "sdpa") -> Any:
    """Shared: a test must leave it unchanged."""
    return FAMILIES[name].model(attn)


@cache
def batch_of(name: str, images: tuple[int, ...] = (1, 2, 0), side: str = "left", labels: bool = False) -> Any:
    return make_batch(name, images=images, padding_side=side, labels=labels)


def reducer_of(method: str, keep: int | float = 8, **options: Any) -> Reducer:
    return REDUCERS[method](keep=keep, **options)


def new_tokens(model: Any, batch: dict[str, Tensor], number: int = 5, **options: Any) -> Tensor:
    """Generated ids only. Visual tokens are not generated: no model's forward takes them without an image."""
    names = ("image_token_id", "image_token_index", "video_token_id")
    visual = {getattr(model.config, name, None) for name in names} - {None}
    options |= {"do_sample": False, "max_new_tokens": number, "min_new_tokens": number}
    ids = model.generate(**batch, suppress_tokens=sorted(visual), **options)
    return ids[:, batch["input_ids"].shape[1] :]
