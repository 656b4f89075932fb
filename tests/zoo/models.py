"""Tiny random models from the real configuration and model classes: five decoder layers, built in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedConfig, PreTrainedModel

from tests.zoo.dialects import DIALECTS, token_ids
from tests.zoo.processors import PATCH, TILE, TILES
from tests.zoo.tokenizers import VOCABULARY

LAYERS = 5
WIDTH = 64
_HEAD = 16
# 0.3 instead of the usual 0.02: attention and logits far from uniform, so that a wrong token shows.
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": WIDTH // _HEAD,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "image_size": TILE,
}
_QWEN_TOWER = {"num_heads": 2, "patch_size": PATCH, "depth": 2}


def _text(name: str, **more: Any) -> dict[str, Any]:
    ids, dialect = token_ids(name), DIALECTS[name]
    ends = {"pad_token_id": ids[dialect.pad], "eos_token_id": ids[dialect.eos]}
    return {**_TEXT, **ends, "bos_token_id": ids[dialect.bos] if dialect.bos else None, **more}


def _clip(patch: int) -> dict[str, Any]:
    return {**_TOWER, "model_type": "clip_vision_model", "patch_size": patch, "projection_dim": 32}


def _siglip(patch: int) -> dict[str, Any]:
    return {**_TOWER, "model_type": "siglip_vision_model", "patch_size": patch, "vision_use_head": False}


def _mrope(*sections: int) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}


def _qwen_ids(name: str) -> dict[str, int]:
    ids = token_ids(name)
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def _llava(name: str) -> PreTrainedConfig:
    return hf.LlavaConfig(
        vision_config=_clip(PATCH),
        text_config=_text(name, model_type="llama"),
        image_token_id=token_ids(name)["<image>"],
        image_seq_length=64,
    )


def _llava_next(name: str) -> PreTrainedConfig:
    return hf.LlavaNextConfig(
        vision_config=_clip(2 * PATCH),
        text_config=_text(name, model_type="mistral"),
        image_token_id=token_ids(name)["<image>"],
        image_grid_pinpoints=TILES,
        image_seq_length=16,
    )


def _llava_onevision(name: str) -> PreTrainedConfig:
    return hf.LlavaOnevisionConfig(
        vision_config=_siglip(2 * PATCH),
        text_config=_text(name, model_type="qwen2"),
        image_token_id=token_ids(name)["<image>"],
        video_token_id=token_ids(name)["<video>"],
        image_grid_pinpoints=TILES,
        vision_aspect_ratio="anyres_max_4",
    )


def _qwen2_vl(name: str) -> PreTrainedConfig:
    return hf.Qwen2VLConfig(
        vision_config={**_QWEN_TOWER, "embed_dim": 32, "hidden_size": WIDTH, "in_channels": 3},
        text_config=_text(name, rope_parameters=_mrope(2, 3, 3)),
        **_qwen_ids(name),
    )


def _qwen2_5_vl(name: str) -> PreTrainedConfig:
    tower = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": WIDTH}
    return hf.Qwen2_5_VLConfig(
        vision_config={**_QWEN_TOWER, **tower, "window_size": 4 * PATCH, "fullatt_block_indexes": [1]},
        text_config=_text(name, rope_parameters=_mrope(2, 3, 3)),
        **_qwen_ids(name),
    )


def _qwen3_vl(name: str) -> PreTrainedConfig:
    tower = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": WIDTH, "depth": 4}
    deep = {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 256}
    return hf.Qwen3VLConfig(
        vision_config={**_QWEN_TOWER, **tower, **deep},
        text_config=_text(name, rope_parameters=_mrope(4, 2, 2), head_dim=_HEAD),
        **_qwen_ids(name),
    )


def _qwen3_5(name: str) -> PreTrainedConfig:
    """Linear attention with a full attention layer now and then; before K = 1 there is none."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": WIDTH}
    kinds = ["linear", "full", "linear", "linear", "full"]
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    linear |= {"linear_key_head_dim": _HEAD, "linear_value_head_dim": _HEAD}
    rope = {**_mrope(2, 1, 1), "partial_rotary_factor": 0.5}
    layers = {"layer_types": [f"{kind}_attention" for kind in kinds]}
    return hf.Qwen3_5Config(
        vision_config={**_QWEN_TOWER, **tower, "num_position_embeddings": 256},
        text_config=_text(name, rope_parameters=rope, head_dim=_HEAD, **linear, **layers),
        **_qwen_ids(name),
    )


def _internvl(name: str) -> PreTrainedConfig:
    return hf.InternVLConfig(
        vision_config={**_TOWER, "image_size": [TILE, TILE], "patch_size": [PATCH, PATCH]},
        text_config=_text(name, model_type="qwen2"),
        image_token_id=token_ids(name)["<IMG_CONTEXT>"],
        image_seq_length=16,
        tie_word_embeddings=False,
    )


def _idefics(name: str) -> PreTrainedConfig:
    kind = {"idefics3": hf.Idefics3Config, "smolvlm": hf.SmolVLMConfig}[name]
    return kind(
        vision_config={**_TOWER, "patch_size": PATCH},
        text_config=_text(name, model_type="llama"),
        image_token_id=token_ids(name)["<image>"],
        scale_factor=2,
    )


def _gemma3(name: str) -> PreTrainedConfig:
    ids = token_ids(name)
    windows = ["sliding", "sliding", "full", "sliding", "full"]
    sizes = {"head_dim": _HEAD, "query_pre_attn_scalar": _HEAD, "initializer_range": 0.1}
    layers = {"layer_types": [f"{window}_attention" for window in windows], "sliding_window": 512}
    return hf.Gemma3Config(
        vision_config=_siglip(PATCH),
        text_config=_text(name, **sizes, **layers),
        image_token_id=ids["<image_soft_token>"],
        boi_token_id=ids["<start_of_image>"],
        eoi_token_id=ids["<end_of_image>"],
        mm_tokens_per_image=16,
        tie_word_embeddings=False,
    )


CONFIGS: dict[str, Callable[[str], PreTrainedConfig]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_5,
    "internvl": _internvl,
    "idefics3": _idefics,
    "smolvlm": _idefics,
    "gemma3": _gemma3,
}


def build(name: str, attn: str = "sdpa", config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """The tiny model of a family in eval mode; the same weights every time."""
    config = config or CONFIGS[name](name)
    kind = hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind._from_config(config, attn_implementation=attn)
        _roughen(model)
    return model.eval()


@torch.no_grad()
def _roughen(model: PreTrainedModel) -> None:
    """Moves what starts as all ones or zeros: a forgotten norm weight or projection must show."""
    for name, weight in model.get_decoder().named_parameters():
        if "norm" in name and weight.ndim == 1:
            weight.add_(0.3 * torch.randn_like(weight))
    for name, weight in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):
            weight.normal_(0, 0.3)
