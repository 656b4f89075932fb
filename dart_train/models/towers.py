"""The parts of a vision tower that a stage inside it needs, by the family's kind of tower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .structure import ModelParts


@dataclass(frozen=True)
class TowerParts:
    """tower: the module whose forward encodes images; blocks: its transformer blocks.

    packed: the patches of all images are rows of one [N, D] tensor, with `cu_seqlens` between the images; if not, each
        image is a row of [B, prefix + N, D], where the first `prefix` states are class tokens.
    unit: patches that become one visual token, as they follow one another in the packed tensor.
    mergers: the modules that make one state of a unit, after the blocks or between them.
    attention: the name of a block's attention, which takes `attention_mask`.
    """

    tower: Any
    blocks: nn.ModuleList
    packed: bool
    unit: int = 1
    mergers: tuple[nn.Module, ...] = ()
    attention: str = ""

    def pixels_of_units(self, pixels: Tensor) -> Tensor:
        """The tower's input -> [U, d], one row a unit."""
        if self.packed:
            return units_of_packed(pixels, self.unit)
        size: Any = self.tower.config.patch_size
        return units_of_patches(pixels, *((size, size) if isinstance(size, int) else size))


def units_of_packed(pixels: Tensor, unit: int) -> Tensor:
    """[U * unit, d] -> [U, unit * d]."""
    return pixels.reshape(len(pixels) // unit, -1)


def units_of_patches(pixels: Tensor, height: int, width: int) -> Tensor:
    """[B, C, H, W] -> [B * N, C * height * width], row by row of each image."""
    patches = pixels.unfold(2, height, height).unfold(3, width, width)  # [B, C, rows, columns, height, width]
    return patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, pixels.shape[1] * height * width)


def find_tower(parts: ModelParts) -> TowerParts:
    """The vision tower of a model whose tower is known; an error that names the model and the reason for others."""
    config = getattr(parts.top.config, "vision_config", None)
    kind = str(getattr(config, "model_type", ""))
    tower = getattr(parts.inner, "visual", None) or getattr(parts.inner, "vision_tower", None)
    if kind not in _TOWERS or tower is None:
        raise NotImplementedError(
            f"TowerDART: the vision tower of {type(parts.top).__name__} ({kind or 'no vision_config.model_type'}) is "
            f"not known; expected one of {', '.join(_TOWERS)}. Use a reduction in the language model, such as DART."
        )
    return _TOWERS[kind](tower)


def _packed(tower: Any) -> TowerParts:
    mergers = (tower.merger, *getattr(tower, "deepstack_merger_list", ()))
    return TowerParts(tower, tower.blocks, packed=True, unit=tower.spatial_merge_size**2, mergers=mergers)


def _clip(tower: Any) -> TowerParts:
    return TowerParts(tower, tower.encoder.layers, packed=False, attention="self_attn")


def _internvl(tower: Any) -> TowerParts:
    return TowerParts(tower, tower.encoder.layer, packed=False, attention="attention")


_TOWERS: dict[str, Callable[[Any], TowerParts]] = {
    "qwen2_vl": _packed,
    "qwen2_vl_vision": _packed,
    "qwen2_5_vl": _packed,
    "qwen2_5_vl_vision": _packed,
    "qwen3_vl": _packed,
    "qwen3_vl_vision": _packed,
    "clip_vision_model": _clip,
    "siglip_vision_model": _clip,
    "internvl_vision": _internvl,
}


def attention_mask_of(valid: Tensor, module: Any) -> Tensor:
    """valid [B, S] bool -> the mask that the attention of a tower takes: [B, 1, 1, S] bool, additive for eager; [B, S]
    for flash attention, which unpads."""
    if uses_flash_attention(module):
        return valid
    mask = valid[:, None, None]
    if module.config._attn_implementation != "eager":
        return mask
    dtype = next(module.parameters()).dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def uses_flash_attention(module: Any) -> bool:
    return "flash" in str(module.config._attn_implementation)
