"""Position embeddings of the vision tower stretched over a smaller picture: what `dart_train.models.resize` needs
where an encoder has one fixed size (LLaVA-1.5)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .structure import unwrap

OPTION = "interpolate_pos_encoding"


@contextmanager
def interpolated_positions(model: Any) -> Iterator[None]:
    """Within, the vision tower takes pictures of any size; at its own size nothing changes. CLIP and SigLIP
    have the option, but LLaVA's forward does not hand it on."""
    inner = getattr(unwrap(model), "model", None)
    tower = getattr(inner, "vision_tower", None)
    if tower is None or OPTION not in inspect.signature(tower.forward).parameters:
        raise ValueError(
            f"{type(unwrap(model)).__name__}: its vision tower cannot interpolate position embeddings "
            f"(expected a `vision_tower` whose forward takes {OPTION}); give pictures of its own size"
        )
    handle = tower.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, OPTION: True}), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()
