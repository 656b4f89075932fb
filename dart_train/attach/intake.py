"""What comes into a forward: taken apart, checked, and refused where an answer would be silently wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .transformers_compat import cache_of

PIXELS = ("pixel_values", "pixel_values_videos", "pixel_values_images")


def has_images(inputs: Mapping[str, Any]) -> bool:
    """Asked of the host alone: decoding steps carry no pictures and cost no synchronisation."""
    encoded = inputs.get("mm_encoder_outputs") or {}
    return any(inputs.get(name) is not None for name in PIXELS) or any(v is not None for v in encoded.values())


def on_host(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs, what lies on a device brought here in one transfer: the one synchronisation of a reduction."""
    away = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.device.type != "cpu"}
    if not away:
        return dict(inputs)
    device = next(iter(away.values())).device
    together = torch.cat([x.flatten().to(device, torch.long) for x in away.values()]).cpu()
    parts = together.split([x.numel() for x in away.values()])
    return {**inputs, **{name: part.view(x.shape) for (name, x), part in zip(away.items(), parts, strict=True)}}


def two_dimensional(mask: Any) -> Tensor | None:
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return mask
    shape = f" of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else ""
    raise ValueError(
        f"attention_mask is a {type(mask).__name__}{shape}; expected None or [batch, length] with 0 at padding. "
        "Give the mask that the processor makes; the model builds the others itself."
    )


def check_inputs(inputs: Mapping[str, Any]) -> Tensor:
    """The ids of a forward that brings pictures, or a refusal."""
    ids: Tensor | None = inputs.get("input_ids")
    if ids is None:
        raise ValueError("pictures came in without input_ids: they are needed to find the visual tokens")
    check_cache(cache_of(inputs))
    if packed := [name for name in ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx") if inputs.get(name) is not None]:
        raise packed_sequences(", ".join(packed))
    return ids


def packed_sequences(by: str) -> NotImplementedError:
    return NotImplementedError(
        f"packed sequences ({by}): tokens of one sample would choose for another. Turn packing / padding_free off, "
        "and pad with an attention_mask."
    )


def check_cache(cache: Any) -> None:
    if cache is not None and getattr(cache, "is_compileable", False):
        raise NotImplementedError(
            f"{type(cache).__name__}: a static cache has one length for all layers, and layers >= K hold fewer "
            "tokens. Use the dynamic cache: generate(cache_implementation='dynamic')."
        )


def telling_positions(inputs: Mapping[str, Any]) -> Tensor | None:
    """Position ids that may tell of packed samples: nothing else tells them apart."""
    positions: Tensor | None = inputs.get("position_ids")
    told_apart = inputs.get("attention_mask") is not None or cache_of(inputs) is not None
    return None if positions is None or told_apart or positions.ndim != 2 else positions


def check_positions(positions: Tensor | None) -> None:
    """On the host: position ids that go back mark packed samples."""
    if positions is not None and bool((torch.diff(positions, dim=1) < 0).any()):
        raise packed_sequences("position_ids that start again")
