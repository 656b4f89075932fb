"""The models that are measured: real configuration classes, at full size or scaled down.

Scaling reduces the number of heads and of layers; the size of a head and the numbers of tokens stay the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import transformers as hf

IMAGE = 5  # id of the image token in all of them
VIDEO = 6  # and of the video token, where there is one
_LEAST_VOCABULARY = 1024
Grid = tuple[int, int]


@dataclass(frozen=True)
class ModelShape:
    """grid, small_grid: patches (rows, columns) of an image, and of a smaller one that the vision tower turns into
    about `kept` tokens. tokens: visual tokens of the image; kept: how many the reduction keeps. frames: of a video in
    place of the image; 0: none."""

    name: str
    key: str
    config: Callable[[float], Any]
    grid: Grid
    small_grid: Grid
    tokens: int
    kept: int
    batch: int  # rows of a training step at full size
    frames: int = 0

    @property
    def visual_id(self) -> int:
        return VIDEO if self.frames else IMAGE


def _llama(scale: float, **more: Any) -> dict[str, Any]:
    """Vicuna-7B."""
    heads = _scaled_heads(32, scale)
    sizes = {"hidden_size": 128 * heads, "intermediate_size": 344 * heads, "num_hidden_layers": _depth(32, scale)}
    ends = {"vocab_size": _vocabulary(32064, scale), "max_position_embeddings": 4096, "pad_token_id": 0}
    attention = {"num_attention_heads": heads, "num_key_value_heads": heads}
    return {"model_type": "llama", **sizes, **ends, **attention, **more}


def _clip(scale: float) -> dict[str, Any]:
    """CLIP ViT-L/14 at 336 pixels."""
    heads = _scaled_heads(16, scale)
    sizes = {"hidden_size": 64 * heads, "intermediate_size": 256 * heads, "num_hidden_layers": _depth(24, scale)}
    image = {"image_size": 336, "patch_size": 14, "projection_dim": 48 * heads}
    return {"model_type": "clip_vision_model", "num_attention_heads": heads, **sizes, **image}


def _llava(scale: float) -> Any:
    return hf.LlavaConfig(vision_config=_clip(scale), text_config=_llama(scale), image_token_id=IMAGE)


def _llava_next(scale: float) -> Any:
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    return hf.LlavaNextConfig(
        vision_config=_clip(scale),
        text_config=_llama(scale),
        image_grid_pinpoints=pinpoints,
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )


def _qwen2_5_vl(scale: float) -> Any:
    heads, vision_heads, depth = _scaled_heads(28, scale), _scaled_heads(16, scale), _depth(32, scale)
    text = {
        "vocab_size": _vocabulary(152064, scale),
        "hidden_size": 128 * heads,
        "intermediate_size": 18944 * heads // 28,
        "num_hidden_layers": _depth(28, scale),
        "num_attention_heads": heads,
        "num_key_value_heads": _shared(4, scale, heads),
        "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {
        "hidden_size": 80 * vision_heads,
        "intermediate_size": 3420 * vision_heads // 16,
        "num_heads": vision_heads,
        "depth": depth,
        "out_hidden_size": 128 * heads,
        "window_size": 112,
        "fullatt_block_indexes": _spread((7, 15, 23, 31), 32, depth),
    }
    return hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **_QWEN_IDS)


def _qwen3_vl(scale: float) -> Any:
    heads, vision_heads, depth = _scaled_heads(32, scale), _scaled_heads(16, scale), _depth(27, scale)
    text = {
        "vocab_size": _vocabulary(151936, scale),
        "hidden_size": 128 * heads,
        "intermediate_size": 384 * heads,
        "num_hidden_layers": _depth(36, scale),
        "num_attention_heads": heads,
        "num_key_value_heads": _shared(8, scale, heads),
        "head_dim": 128,
        "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    }
    vision = {
        "hidden_size": 72 * vision_heads,
        "intermediate_size": 269 * vision_heads,
        "num_heads": vision_heads,
        "depth": depth,
        "out_hidden_size": 128 * heads,
        "patch_size": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": _spread((8, 16, 24), 27, depth),
    }
    return hf.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **_QWEN_IDS)


_QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 7, "vision_end_token_id": 8}

SHAPES = {
    shape.key: shape
    for shape in (
        ModelShape("LLaVA-1.5-7B", "llava", _llava, (24, 24), (8, 8), 576, 64, 16),
        # Four tiles and the complete image, 576 tokens each, and one newline token for each of 48 rows.
        ModelShape("LLaVA-NeXT-7B", "llava_next", _llava_next, (24, 24), (8, 8), 2928, 320, 4),
        ModelShape("Qwen2.5-VL-7B", "qwen2_5_vl", _qwen2_5_vl, (72, 72), (24, 24), 1296, 144, 8),
        ModelShape("Qwen3-VL-8B", "qwen3_vl", _qwen3_vl, (72, 72), (24, 24), 1296, 144, 8),
    )
}


# 16 frames of 336 x 336 pixels, two together in a token: 8 grids of 12 x 12 tokens, of which 11.1% are kept.
VIDEO_SHAPE = replace(
    SHAPES["qwen2_5_vl"], name="Qwen2.5-VL-7B, a video of 16 frames", grid=(24, 24), small_grid=(8, 8), tokens=1152,
    kept=128, frames=16,
)  # fmt: skip


def _scaled_heads(heads: int, scale: float) -> int:
    return max(1, round(heads * scale))


def _depth(layers: int, scale: float) -> int:
    """Fewer layers too, but not as few: 32 become 12 at an eighth of the width."""
    return max(4, math.ceil(layers * math.sqrt(scale)))


def _vocabulary(number: int, scale: float) -> int:
    return max(_LEAST_VOCABULARY, round(number * scale / 32) * 32)


def _shared(key_heads: int, scale: float, heads: int) -> int:
    """Key heads: as many queries share one as the full size has it, as far as that divides."""
    wanted = _scaled_heads(key_heads, scale)
    return next(n for n in range(wanted, 0, -1) if heads % n == 0)


def _spread(layers: tuple[int, ...], of: int, depth: int) -> list[int]:
    """These layers of so many, at the same places among fewer."""
    return sorted({max(0, round((layer + 1) * depth / of) - 1) for layer in layers})
