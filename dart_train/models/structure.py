"""The parts of a Hugging Face vision-language model, or an error that names the missing ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from .families import GENERIC, Family, find_family, projector_names

PartName = Literal["vision", "projector", "language", "scorer"]
SCORERS = "dart_scorers"  # the submodule that holds the trained scorers of a reduction
# Names of a decoder's final norm: the second is LFM2's, then Persimmon's, OPT's and Nemotron-H's.
FINAL_NORMS = ("norm", "embedding_norm", "final_layernorm", "final_layer_norm", "norm_f")
# Layer types without keys and values: linear attention and short convolutions, whose state runs over the tokens, and
# layers that work on each token alone.
RECURRENT = frozenset({"linear_attention", "conv", "mlp", "moe"})


@dataclass(frozen=True)
class ModelParts:
    """What the reduction hooks into, inside all wrappers."""

    top: Any  # ...ForConditionalGeneration
    inner: Any  # merges images and text
    text: Any  # the decoder
    layers: nn.ModuleList
    norm: nn.Module  # the final norm
    visual_ids: tuple[int, ...]
    family: Family

    @property
    def text_config(self) -> Any:
        return self.text.config

    def attention(self, layer: int) -> Any:
        """The attention module of a layer; None where the layer has none, or one of a recurrent state."""
        return None if self.is_recurrent(layer) else _attention_of(self.layers[layer])

    def is_recurrent(self, layer: int) -> bool:
        types = getattr(self.text_config, "layer_types", None)
        return types is not None and types[layer] in RECURRENT

    def attention_layers(self, start: int = 0, stop: int | None = None) -> list[int]:
        """Layers from `start` on and before `stop` whose attention has keys and values of its own."""
        layers = range(len(self.layers))[start:stop]
        return [i for i in layers if self.attention(i) is not None and self.key_source(i) == i]

    @property
    def active_stream(self) -> int | None:
        """Gemma 3n's layers work on several streams of hidden states, [streams, B, L, D]: the one that attention reads.
        None where there is one stream."""
        return getattr(self.text_config, "altup_active_idx", None)

    @property
    def own_positions(self) -> bool:
        """Whether the model computes its position ids itself, from the grids of images. Others count places, padding on
        the left included, unless they are given position ids. Of a model of no known family its methods tell."""
        if self.family is not GENERIC:
            return self.family.own_positions
        return hasattr(self.inner, "get_rope_index") or not _takes(self.inner, "position_ids")

    def key_source(self, layer: int) -> int:
        """The layer whose keys and values a layer attends to: itself, or, where it shares them (Gemma 3n and 4), the
        last earlier layer of its type that has its own."""
        types = getattr(self.text_config, "layer_types", None)
        while getattr(self.attention(layer), "is_kv_shared_layer", False):
            layer = next(i for i in reversed(range(layer)) if types is None or types[i] == types[layer])
        return layer


def unwrap_model(model: Any) -> Any:
    """The Hugging Face model inside DDP, DeepSpeed, torch.compile and PEFT."""
    for name in ("_orig_mod", "module"):
        inside = getattr(model, name, None)
        if isinstance(inside, nn.Module):
            return unwrap_model(inside)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def find_parts(model: Any) -> ModelParts:
    top = unwrap_model(model)
    if reason := _unsuitable(top):
        raise NotImplementedError(f"{type(top).__name__}: the reduction cannot be attached: {reason}.")
    inner = getattr(top, "model", None)
    if inner is None and _takes(top, "pixel_values"):
        inner = top  # it merges images and text itself, as Llama 4 does
    text = _decoder(top)
    layers = getattr(text, "layers", None)
    norm = next((getattr(text, name) for name in FINAL_NORMS if hasattr(text, name)), None)
    visual_ids = _visual_ids(getattr(top, "config", None))
    missing = [
        what
        for what, found in (
            ("a `.model` that merges images and text", inner),
            ("a decoder (`get_decoder()`) with `.layers`", layers),
            ("a final norm (`.norm`) in the decoder", norm),
            ("`config.image_token_id`", visual_ids or None),
            ("`input_ids` in the forward", inner if _takes(inner, "input_ids") else None),
            ("`self_attn` in its decoder layers", _has_attention(text, layers)),
        )
        if found is None
    ]
    if missing:
        raise NotImplementedError(
            f"{type(top).__name__}: the reduction cannot be attached; this model lacks {', '.join(missing)}. "
            "Expected: a Hugging Face image-text-to-text model whose language model is a stack of decoder layers."
        )
    _refuse_unknown_deepstack(text)
    family = find_family(top.config.model_type)
    assert layers is not None and norm is not None
    return ModelParts(top, inner, text, layers, norm, visual_ids, family)


def part_of(model: Any) -> Callable[[str], PartName]:
    """A function from the name of a parameter or module to the part of the model that it belongs to. Names may be those
    inside PEFT."""
    top = unwrap_model(model)
    decoder, head = top.get_decoder(), top.get_output_embeddings()
    language = tuple(name for name, module in top.named_modules() if module is decoder or module is head)
    projectors = projector_names(find_family(top.config.model_type))

    def part(name: str) -> PartName:
        name = name.removeprefix("base_model.model.")
        if name.split(".")[0] == SCORERS:
            return "scorer"
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in language):
            return "language"
        return "projector" if projectors & set(name.split(".")) else "vision"

    return part


def _unsuitable(top: Any) -> str | None:
    """Why a model has no visual tokens that could be dropped inside its language model, or cannot lose any."""
    config = getattr(top, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return None
    text = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        return "it is an encoder-decoder model, whose decoder reads the image through cross-attention"
    if hasattr(text, "cross_attention_layers") or hasattr(text, "cross_layer_interval") or config.model_type == "blip":
        return "its language model reads the image through cross-attention layers, not as tokens of the sequence"
    if hasattr(config, "canvas_length"):
        return "it generates by denoising blocks of tokens (block diffusion), not token by token"
    if _takes(top, "image_embeds_position_mask"):
        return "it marks the places of the image by `image_embeds_position_mask`, not by a token of their own"
    if hasattr(config, "qformer_config") and not hasattr(top, "model"):
        return "its `generate` runs the language model alone, past this model's forward (and past the reduction in it)"
    if hasattr(top, "git"):
        return "it puts the image before the text by itself, without tokens for it in `input_ids`"
    if _takes(top, "actions"):
        return "it predicts actions of a robot from one forward, and generates no text"
    layers = getattr(_decoder(top), "layers", None) or [None]
    if _takes(layers[0], "prev_topk_indices"):
        return (
            "its layers attend to the keys that the indexer of an earlier layer selected, by place in the sequence: "
            "the places of a full-length layer are others among the kept tokens"
        )
    if hasattr(text, "indexer_compress_ratio"):
        return (
            "its indexer scores keys that are compressed over neighbouring places, and some layers add embeddings "
            "of neighbouring tokens: without the dropped tokens both would change for all that are kept"
        )
    if hasattr(text, "index_kpool"):
        return "its indexer pools the keys of neighbouring places, which among the kept tokens are others"
    if hasattr(text, "rel_extent") and hasattr(text, "conv_kernel_size"):
        return (
            "its attention counts distances by place in the sequence, and short convolutions run over neighbouring "
            "places: without the dropped tokens both would change for all that are kept"
        )
    return None


def _decoder(top: Any) -> Any:
    """The stack of layers: inside a causal language model, where that is what a model calls its decoder (Llama 4)."""
    try:
        found = top.get_decoder()
    except (AttributeError, NotImplementedError):
        return None
    for name in ("model", "decoder"):
        if not hasattr(found, "layers") and hasattr(found, name):
            found = getattr(found, name)
    return found


def _visual_ids(config: Any) -> tuple[int, ...]:
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    found = (getattr(config, name, None) for name in names)
    return tuple(dict.fromkeys(int(i) for i in found if i is not None))


def _takes(module: Any, name: str) -> bool:
    return module is not None and name in inspect.signature(module.forward).parameters


def _attention_of(layer: Any) -> Any:
    """Nemotron-H calls what a layer does its mixer, attention or not."""
    return getattr(layer, "self_attn", getattr(layer, "mixer", None))


def _has_attention(text: Any, layers: Any) -> Any:
    """Every layer has attention, but those whose type says that they are recurrent; one at least has it."""
    if layers is None:
        return None
    types = getattr(text.config, "layer_types", None) or [""] * len(layers)
    has = [_attention_of(layer) is not None for layer in layers]
    known = all(one or kind in RECURRENT for one, kind in zip(has, types, strict=False))
    return layers if known and any(has) else None


def _refuse_unknown_deepstack(text: Any) -> None:
    """Features that are added to the states of later layers at full length must be reduced to the kept tokens. That is
    possible where one method adds them, and where they are an argument of the decoder, by layer."""
    names = inspect.signature(type(text).forward).parameters
    takes = any("deepstack" in name for name in names)
    if takes and not hasattr(text, "_deepstack_process") and not {"deepstack_features", "vision_mask"} <= names.keys():
        raise NotImplementedError(
            f"{type(text).__name__} adds deepstack features inside its forward, at full length; only models that "
            "do it in `_deepstack_process` (Qwen3-VL), or are given `deepstack_features` by layer (Granite 4 Vision), "
            "can be reduced."
        )
