"""A tiny random model of every image class of the installed transformers, from its own configuration class.

Sizes are shrunk by their names; `CHANGES` holds what a family needs in addition. Vision towers are as small as their
configuration allows: `tests.zoo.survey` gives the models the outputs of the tower (`mm_encoder_outputs`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

VOCABULARY = 160
LAYERS = 5
PAD, BOS, EOS = 0, 1, 2
DEEPSTACK = "deepstack_visual_indexes"
LARGEST = 8_000_000  # parameters; a model above this has a size that was not shrunk

_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "intermediate_size_mlp": 96,
    "dense_intermediate_size": 96,
    "ffn_dim": 96,
    "num_hidden_layers": LAYERS,
    "num_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,  # attention far from uniform, so that a wrong token shows
    "num_experts": 4,
    "num_local_experts": 4,
    "moe_hidden_size": 32,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "share_expert_dim": 32,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "first_k_dense_replace": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "ssm_state_size": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "attention_dropout": 0.0,  # losses are compared
    "hidden_dropout": 0.0,
    "altup_num_inputs": 2,
    "laurel_rank": 8,
}
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "embed_dim": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "depth": 2,
    "num_attention_heads": 2,
    "num_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "out_hidden_size": 64,
    "projection_dim": 64,
    "image_size": 56,
    "patch_size": 14,
    "num_position_embeddings": 64,
    "mlp_dim": 48,
    "mlp_ratio": 2,
}


def _mrope(*sections: int) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}


def _two_ropes(first: str, second: str) -> dict[str, Any]:
    return {name: {"rope_type": "default", "rope_theta": 10000.0} for name in (first, second)}


CLIP = {**{name: _TOWER[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}} | {
    "model_type": "clip_vision_model",
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
_INKLING = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "unpadded_vocab_size": VOCABULARY,
}
_LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
_MROPE = {"text_config": {"rope_parameters": _mrope(4, 2, 2)}}
_AUDIO = {"d_model": 32, "encoder_ffn_dim": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "output_dim": 64}

# What a family needs in addition, merged into its small configuration.
CHANGES: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "audio_config": {"hidden_size": 64, "codebook_dim": 64, "codebook_size": 32, "num_filters": 4},
        "vision_config": {"codebook_size": 32, "embed_dim": 32, "latent_channels": 32, "base_channels": 32},
        "text_config": {"vocab_size": 240},
        "image_token_offset": 170,
        "audio_token_offset": 202,
    },
    "chameleon": {
        "vocabulary_map": {"<image>": 150, **{f"IMGIMG{c}Z": 20 + n for n, c in enumerate("ABCDEFGH")}},
        "vq_config": {"num_embeddings": 8, "embed_dim": 32, "latent_channels": 32, "base_channels": 32},
        "num_key_value_heads": 4,
    },
    "cohere_compass": {
        "text_config": {"rope_parameters": {"full_attention": _mrope(4, 2, 2)}},
        "vision_config": {"deepstack_visual_indexes": [0]},
    },
    "cosmos3_edge": {**_MROPE, "projector_hidden_size": 64},
    "cosmos3_omni": {**_MROPE, "vision_config": {"deepstack_visual_indexes": [0, 1]}},
    "cohere2_vision": {"alignment_intermediate_size": 64},
    "deepseek_ocr2": {
        "vision_config": {
            "sam_config": {"downsample_channels": [32, 32], "output_channels": 32, "global_attn_indexes": [1]},
            "encoder_config": {"vocab_size": 32},
        },
        "text_config": {"num_key_value_heads": 4, "mlp_layer_types": ["dense"] + ["sparse"] * (LAYERS - 1)},
    },
    "dots3_note": {
        "text_config": {"num_key_value_heads": 4, "index_topk": 4096, "layer_types": ["full_attention"] * LAYERS},
        "vision_config": {"mlp_layer_types": ["dense", "dense"], "adapter_in_dim": 32, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 32, "downsample_hidden_size": 32, "adapter_out_dim": 64},
    },
    "blip-2": {"image_token_index": 120, "num_query_tokens": 12},
    "instructblip": {"image_token_index": 120, "text_config": _LLAMA, "num_query_tokens": 12},
    "instructblipvideo": {"image_token_index": 120, "text_config": _LLAMA, "num_query_tokens": 12},
    "emu3": {
        "vocabulary_map": {"<image>": 150, **{f"<|visual token {n:06d}|>": 20 + n for n in range(8)}},
        "vq_config": {"codebook_size": 8, "embed_dim": 32, "latent_channels": 4, "base_channels": 32},
        "image_token_id": 150,
    },
    "ernie4_5_vl_moe": {
        "text_config": {"rope_parameters": _mrope(3, 3, 2), "moe_intermediate_size": [32, 32]},
    },
    "fast_vlm": {"vision_config": CLIP},
    "gemma3n": {
        "text_config": {
            "num_kv_shared_layers": 2,
            "intermediate_size": [96] * LAYERS,
            "layer_types": ["full_attention"] * LAYERS,
        },
        "audio_config": {"vocab_size": 16, "vocab_offset": 140, "conf_num_hidden_layers": 1},
        "vision_config": {"vocab_size": 16, "vocab_offset": 120},
    },
    "glm46v": _MROPE,
    "glmga": _MROPE,
    "glm4v": _MROPE,
    "glm4v_moe": {"text_config": {"rope_parameters": {**_mrope(2, 1, 1), "partial_rotary_factor": 0.5}}},
    "glm_ocr": _MROPE,
    "glm5_next": {"text_config": {"num_key_value_heads": 4, "qk_rope_head_dim": 0}},
    "granite4_vision": {
        "deepstack_layer_map": [(-1, 1)],
        "spatial_target_layers": [2, 4],  # after K = 2, too
        "vision_config": {"hidden_size": 64},
        "downsample_rate": "1/2",
    },
    "hunyuan_vl": _MROPE,
    "hy_v4_vl": {"text_config": {"rope_parameters": _mrope(2, 1, 1), "index_topk": 4096}},
    "inkling2": {
        "vision_config": {"text_hidden_size": 64, "projection_hidden_dim": 64},
        "text_config": _INKLING | {"n_layers_per_attn_res_block": 2},
    },
    "inkling2_loop": {
        "vision_config": {"text_hidden_size": 64, "projection_hidden_dim": 64},
        "text_config": _INKLING
        | {
            "n_layers_per_attn_res_block": 2,
            "loop_layer_index_start": 2,
            "loop_layer_index_end": 4,
            "loop_gate_rank": 8,
        },
    },
    "inkling_mm_model": {
        "vision_config": {"text_hidden_size": 64},
        "audio_config": {"text_hidden_size": 64},
        "text_config": _INKLING,
    },
    "kimi_k25": {"text_config": {"num_key_value_heads": 4, "head_dim": 8}},
    "janus": {"vq_config": {"base_channels": 32, "embed_dim": 8, "latent_channels": 32, "num_embeddings": 16}},
    "lfm2_vl": {"text_config": {"layer_types": ["conv", "full_attention", "conv", "conv", "full_attention"]}},
    "llama4": {"vision_config": {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64}},
    "minicpm_ocr": {"image_token_id": 120, "video_token_id": 121},
    "minicpmv4_6": {"image_token_id": 120, "video_token_id": 121},
    "minicpmv4_7": {"image_token_id": 120, "video_token_id": 121},
    "minimax_m3_vl": {"merged_hidden_size": 64, "projector_hidden_size": 64},
    "mistral_large4": {"text_config": {"num_key_value_heads": 4}},
    "molmo2": {
        "adapter_config": {"vision_feature_layer": [1, 0], "text_hidden_size": 64},
        "vision_config": {"num_position_embeddings": 16},
        "text_config": {"additional_vocab_size": 0},
    },
    "muse_glimmer": {"out_hidden_size": 64, "projector_hidden_size": 64},
    "muse_spark": {
        "audio_config": {
            "num_hidden_layers": 4,
            "hidden_sizes": [32] * 4,
            "depths": [1] * 4,
            "out_hidden_size": 64,
        },
        "out_hidden_size": 64,
        "projector_hidden_size": 64,
    },
    "nemotron_h_omni": {
        "image_token_id": 120,
        "text_config": {
            "layers_block_type": ["linear_attention", "full_attention", "linear_attention", "mlp", "full_attention"]
        },
        "vision_config": {"video_temporal_patch_size": 2},
        "vision_hidden_size": 32,
        "projector_hidden_size": 32,
    },
    "ovis2": {"vision_config": {"vocab_size": 32}},
    "paddleocr_vl": _MROPE,
    "perception_lm": {"vision_config": {**CLIP, "model_args": {"embed_dim": 32}}},
    "qwen2_5_omni_thinker": {**_MROPE, "audio_config": _AUDIO, "vision_start_token_id": 118},
    "qwen3_omni_moe_thinker": {
        **_MROPE,
        "audio_config": _AUDIO | {"downsample_hidden_size": 32},
        "vision_start_token_id": 118,
        "vision_config": {"deepstack_visual_indexes": [0, 1]},
    },
    "qwen2_5_vl": _MROPE,
    "unlimited_ocr": {"text_config": {"sliding_window": 3, "num_key_value_heads": 4}},
    "step3p7": {"text_config": {"sliding_window": 4096}},
    "qwen2_vl": _MROPE,
    "qwen3_5": _MROPE,
    "qwen3_5_moe": _MROPE,
    "qwen3_vl": {**_MROPE, "vision_config": {"deepstack_visual_indexes": [0, 1]}},
    "qwen3_vl_moe": {**_MROPE, "vision_config": {"deepstack_visual_indexes": [0, 1]}},
    "qwen4_exp": {
        "text_config": {
            "rope_parameters": _mrope(4, 2, 2),
            "hc_count": 2,
            "hc_lowrank": 8,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 4096,
            "indexer_compress_ratio": 4,
        },
        "vision_config": {"deepstack_visual_indexes": []},
    },
}
# The same classes with a mechanism that some checkpoints turn on: name -> (model type, changes).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "minimax_m3_vl+few_blocks": (
        "minimax_m3_vl",
        {
            "text_config": {
                "index_block_size": 4,
                "index_topk_blocks": 3,
                "index_local_blocks": 1,
                "layer_types": ["minimax_m3_sparse"] * LAYERS,
            }
        },
    ),
    "dots3_note+few_keys": ("dots3_note", {"text_config": {"index_topk": 12}}),
    "gemma4+no_per_layer_inputs": ("gemma4", {"text_config": {"hidden_size_per_layer_input": 0}}),
    "llama4+small_chunks": ("llama4", {"text_config": {"attention_chunk_size": 16}}),
}


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict) and name.endswith(("config", "coder")):
            if value.get("model_type", into[name].get("model_type")) != into[name].get("model_type"):
                into[name] = dict(value)  # another class: nothing of the first one is kept
            else:
                _merge(into[name], value)
        else:
            into[name] = value
    return into


def _value(config: PreTrainedConfig, name: str) -> Any:
    return vars(config).get(name, vars(type(config)).get(name))


def _small(config: PreTrainedConfig, table: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `table` that this configuration has as plain numbers."""
    small = {}
    for name, value in table.items():
        given = _value(config, name)
        known = name in vars(config) or name in getattr(type(config), "__dataclass_fields__", {})
        if known and not isinstance(given, (list, tuple, dict, bool, property)):
            small[name] = type(given)(value) if isinstance(given, float) else value
    return small


def _special_tokens(config: PreTrainedConfig) -> dict[str, int]:
    """Ids of special tokens inside the small vocabulary, distinct within one configuration."""
    ends = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    found = {name: value for name, value in ends.items() if name in vars(config)}
    free = iter(range(VOCABULARY - 40, VOCABULARY))
    for name, value in vars(config).items():
        if name not in found and isinstance(value, int) and name.endswith(("_token_id", "_token_index", "_id")):
            found[name] = next(free)
    return found


def _shrink(config: PreTrainedConfig, role: str) -> dict[str, Any]:
    small = {"top": {}, "text": _small(config, _TEXT), "tower": _small(config, _TOWER)}[role]
    for name in type(config).sub_configs:
        inside = vars(config).get(name)
        if isinstance(inside, PreTrainedConfig):
            part = (
                "text" if name in ("text_config", "decoder", "vlm_config", "encoder") and role != "tower" else "tower"
            )
            small[name] = _shrink(inside, part)
            if inside.model_type:
                small[name]["model_type"] = inside.model_type
    return small if role == "tower" else {**small, **_special_tokens(config)}


def names() -> dict[str, type[nn.Module]]:
    """Model type -> the class that AutoModelForImageTextToText makes of it, variants included."""
    mapping = hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    found = {config.model_type: kind for config, kind in mapping.items()}
    return dict(sorted((found | {name: found[base] for name, (base, _) in VARIANTS.items()}).items()))


def tiny_config(name: str, window: int | None = None, more: Mapping[str, Any] | None = None) -> PreTrainedConfig:
    """window: of layers with sliding attention, where the family has any. more: changes that come last."""
    base, changes = VARIANTS.get(name, (name, {}))
    kind = next(k for k in hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if k.model_type == base)
    text_only = not kind.sub_configs or "text_config" not in kind.sub_configs
    small = _shrink(kind(), "text" if text_only else "top")
    for change in (CHANGES.get(base, {}), changes, more or {}):
        _merge(small, copy.deepcopy(change))
    config = kind(**small)
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        if window is not None and isinstance(vars(part).get("sliding_window"), int):
            part.sliding_window = window
    if base == "gemma3n":  # its own tower is one of timm
        keep = config.vision_config
        tower = hf.CLIPVisionConfig(**CLIP)
        for setting in ("vocab_size", "vocab_offset", "rms_norm_eps"):
            setattr(tower, setting, getattr(keep, setting))
        vars(config)["vision_config"] = tower  # not assigned: the class checks the type
    return config


def has_window(name: str) -> bool:
    """Whether some layer's attention slides."""
    text = tiny_config(name).get_text_config()
    return "sliding" in str(vars(text).get("layer_types")) or isinstance(vars(text).get("sliding_window"), int)


def kernels(name: str) -> tuple[str, ...]:
    model = build(name, "eager", meta=True)
    return ("sdpa", "eager") if decoder(model)._supports_sdpa else ("eager",)


def decoder(model: Any) -> Any:
    """The stack of layers of the language model."""
    found = model.get_decoder()
    for name in ("model", "decoder"):
        if not hasattr(found, "layers") and hasattr(found, name):
            found = getattr(found, name)
    return found


def forward_parameters(model: Any) -> set[str]:
    """Names of what the model takes, or passes on to its inner model."""
    inside = getattr(model, "model", model)
    own = inspect.signature(model.forward).parameters
    passed_on = inspect.signature(inside.forward).parameters if "kwargs" in own else {}
    return {*own, *passed_on}


def feature_width(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[1])


def grid_of(model: Any, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of an image's patches: in HunYuan a token ends each row in addition."""
    return (grid[0], grid[1] - 1) if model.config.model_type in ("hunyuan_vl", "hy_v4_vl") else grid


def adapt_features(model: Any, encoded: Any, images: int, tokens: int) -> None:
    """What a family reads of its encoder's output in addition to `pooler_output`: the features of deepstack layers."""
    config, width = model.config, feature_width(model)
    if config.model_type in ("llama4", "fuyu"):
        encoded["last_hidden_state"] = (
            encoded.pooler_output if config.model_type == "fuyu" else torch.stack(list(encoded.pooler_output))
        )
    for name in ("qformer_outputs", "vision_outputs"):  # of the BLIP-2 family: returned as they are
        encoded[name] = None
    generator = torch.Generator().manual_seed(images)

    def of_one_level() -> tuple[torch.Tensor, ...]:
        return tuple(torch.randn(tokens, width, generator=generator) for _ in range(images))

    if config.model_type == "ovis2":
        encoded["visual_indicator_features"] = torch.randn(len(config.visual_indicator_token_ids), width)
    if config.model_type == "granite_docling":
        encoded["router_logits"] = None
    if config.model_type == "granite4_vision":
        encoded["deepstack_features"] = [
            *((layer, of_one_level()) for _, layer in config.deepstack_layer_map),
            *((layer, of_one_level()) for layer in config.spatial_target_layers),
        ]
        return
    places = [vars(part) for part in (config, getattr(config, "vision_config", None)) if part is not None]
    indexes = next((place[DEEPSTACK] for place in places if DEEPSTACK in place), None)
    if indexes:
        encoded["deepstack_features"] = [of_one_level() for _ in indexes]


def adapt_inputs(model: Any, inputs: dict[str, Any]) -> None:
    """What a family wants in addition to ids, mask and the output of its encoder: positional arguments."""
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.default is inspect.Parameter.empty and name in ("pixel_values", "qformer_input_ids"):
            inputs[name] = None


def add_positions(model: Any, first: dict[str, Any], later: dict[str, Any]) -> None:
    """Position ids of two turns, where the model counts them from the grids of all images."""
    count = getattr(getattr(model, "model", model), "get_rope_index", None)
    if count is None:
        return
    both = {"input_ids": torch.cat([first["input_ids"], later["input_ids"]], 1)}
    both["attention_mask"] = later["attention_mask"]
    for name in ("mm_token_type_ids",):
        if name in first:
            both[name] = torch.cat([first[name], later[name]], 1)
    if "image_grid_thw" in first:  # by row: the first turn's image, then the later one's
        grids = [first["image_grid_thw"][:1]] * int(both["input_ids"].shape[0])
        more = later.get("image_grid_thw")
        both["image_grid_thw"] = torch.cat([torch.cat([g, more[:1]]) if more is not None else g for g in grids])
    takes = inspect.signature(count).parameters
    if "target_sizes" in takes:  # MiniCPM-V 4.7 counts from the patches of pixels; here it counts tokens
        return
    positions = count(**{name: value for name, value in both.items() if name in takes})[0]
    length = first["input_ids"].shape[1]
    first["position_ids"], later["position_ids"] = positions[..., :length], positions[..., length:]


def complete_output(name: str) -> None:
    """In transformers 5.24 Llama 4's forward reads an attribute that its decoder's output lacks, with every
    configuration: the output gets it here, so that the model runs at all."""
    if name.startswith("llama4") and not hasattr(MoeCausalLMOutputWithPast, "image_outputs"):
        MoeCausalLMOutputWithPast.image_outputs = None


def build(name: str, attn: str = "sdpa", window: int | None = None, meta: bool = False) -> Any:
    """The tiny model in eval mode, the same weights every time. meta: without weights."""
    config = tiny_config(name, window)
    kind = names()[VARIANTS.get(name, (name,))[0]]
    with torch.device("meta"):
        skeleton = kind(config)
    if meta:
        return skeleton
    sizes = {n: p.numel() for n, p in skeleton.named_parameters()}
    if sum(sizes.values()) > LARGEST:
        largest = sorted(sizes, key=lambda n: -sizes[n])[:3]
        raise ValueError(f"{name}: {sum(sizes.values())} parameters; {largest} were not shrunk")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind._from_config(config, attn_implementation={"": "eager", "text_config": attn})
        _roughen(model)
    return model.eval()


@torch.no_grad()
def _roughen(model: Any) -> None:
    """Moves what starts as all ones or zeros: a forgotten norm weight or projection must show."""
    for name, weight in model.named_parameters():
        if "norm" in name and weight.ndim == 1:
            weight.add_(0.3 * torch.randn_like(weight))
        elif weight.numel() > 1 and not weight.any():
            weight.normal_(0, 0.1)
