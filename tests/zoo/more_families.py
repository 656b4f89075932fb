"""More families, for tests of their token grids alone: the real processors over tiny tokenizers, and tiny models.

Without torchvision transformers has no processor for some of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from tests.zoo import every_model
from tests.zoo.chat import Turns
from tests.zoo.dialects import Dialect
from tests.zoo.models import build
from tests.zoo.processors import PATCH, TILE, Parts, make_processor
from tests.zoo.tokenizers import VOCABULARY

_SQUARE = {"height": TILE, "width": TILE}
_SIGLIP = {"model_type": "siglip_vision_model", "image_size": TILE, "patch_size": PATCH, "vision_use_head": False}
_SIGLIP |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_PIXELS = {"size": {"shortest_edge": 16 * 64, "longest_edge": 2 * 64 * 64}, "patch_size": PATCH}


def _dialect(image: str, video: str = "<video>", named: Mapping[str, str] | None = None, others: str = "") -> Dialect:
    """others: further special tokens, separated by spaces."""
    turns = Turns(user=("<user>", "\n"), assistant=("<answer>", "</s>"), system=("", "\n"), image=image, video=video)
    marks = ("<user>", "<answer>", *others.split())
    return Dialect(turns, eos="</s>", pad="<pad>", bos="<s>", named=dict(named or {}), others=marks)


@dataclass(frozen=True)
class MoreFamily:
    """changes(ids): of the configuration, from the ids of the special tokens."""

    model_type: str
    dialect: Dialect
    parts: Parts
    changes: Callable[[dict[str, int]], dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)

    def model(self, attn: str = "sdpa") -> PreTrainedModel:
        return _build(self.model_type, attn)

    def processor(self) -> ProcessorMixin:
        return _processor(self.model_type)

    def needs(self) -> str:
        """A package that is missing for the family's processor: transformers then has a placeholder for its class."""
        kind = getattr(transformers, self.parts.processor)
        wanted = [*getattr(kind, "_backends", ()), *([] if self.parts.backend else ["torchvision"])]
        return ", ".join(sorted({name for name in wanted if find_spec(name) is None}))


def encode(name: str, rows: Sequence[Sequence[Image.Image]]) -> dict[str, torch.Tensor]:
    """Each row: images, then a question; padded on the left."""
    return encode_with(MORE_FAMILIES[name].processor(), rows)


def encode_with(processor: ProcessorMixin, rows: Sequence[Sequence[Image.Image]]) -> dict[str, torch.Tensor]:
    text = {"type": "text", "text": "what is it"}
    parts = [[*({"type": "image", "image": image} for image in row), text] for row in rows]
    encoded = processor.apply_chat_template(
        [[{"role": "user", "content": content}] for content in parts],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    encoded.pop("labels", None)  # PaliGemma's processor adds them
    return {name: x.float() if x.is_floating_point() else x for name, x in encoded.items()}


@functools.cache
def _processor(name: str) -> ProcessorMixin:
    return make_processor(MORE_FAMILIES[name].parts, MORE_FAMILIES[name].dialect)


def _build(name: str, attn: str) -> PreTrainedModel:
    every_model.complete_output(name)
    family = MORE_FAMILIES[name]
    tokenizer = family.processor().tokenizer  # some processors add tokens
    changes = family.changes(dict(tokenizer.get_vocab()))
    changes.setdefault("text_config", {}).setdefault("vocab_size", max(VOCABULARY, len(tokenizer)))
    return build(name, attn, every_model.tiny_config(name, more=changes))


def _mistral3(ids: dict[str, int]) -> dict[str, Any]:
    tower = {"patch_size": PATCH, "image_size": 4 * TILE, "head_dim": 16}
    return {"image_token_index": ids["[IMG]"], "spatial_merge_size": 2, "vision_config": tower}


def _glm4v(ids: dict[str, int]) -> dict[str, Any]:
    named = {"image_token_id": "<|image|>", "video_token_id": "<|video|>"}
    for kind in ("image", "video"):
        named |= {f"{kind}_start_token_id": f"<|begin_of_{kind}|>", f"{kind}_end_token_id": f"<|end_of_{kind}|>"}
    tower = {"patch_size": PATCH, "image_size": 8 * PATCH, "spatial_merge_size": 2, "out_hidden_size": 64}
    return {**{name: ids[token] for name, token in named.items()}, "vision_config": tower}


def _ovis2(ids: dict[str, int]) -> dict[str, Any]:
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tower = {"image_size": TILE, "patch_size": PATCH, "hidden_stride": 2, "vocab_size": 64}
    changes = {"image_token_id": ids["<IMG_ATOM>"], "visual_indicator_token_ids": [ids[mark] for mark in marks]}
    return {**changes, "vision_config": tower, "vocab_size": VOCABULARY, "hidden_size": 64}


def _aya(ids: dict[str, int]) -> dict[str, Any]:
    return {"image_token_index": ids["<|IMG_PATCH|>"], "vision_config": _SIGLIP, "downsample_factor": 2}


def _paligemma(ids: dict[str, int]) -> dict[str, Any]:
    return {"image_token_index": ids["<image>"], "vision_config": _SIGLIP, "projection_dim": 64}


def _molmo2(ids: dict[str, int]) -> dict[str, Any]:
    marks = {"image_patch_id": "<im_patch>", "image_col_id": "<im_col>", "image_start_token_id": "<im_start>"}
    marks |= {"low_res_image_start_token_id": "<low_res_im_start>", "image_end_token_id": "<im_end>"}
    tower = {"image_size": [TILE, TILE], "patch_size": PATCH, "num_position_embeddings": (TILE // PATCH) ** 2}
    rough = {"initializer_range": 0.3}  # with the usual 0.02 a changed patch barely changes its token
    return {
        **{name: ids[mark] for name, mark in marks.items()},
        "vision_config": tower | rough,
        "adapter_config": rough,
    }


def _deepseek(ids: dict[str, int]) -> dict[str, Any]:
    return {"image_token_id": ids["<image_placeholder>"], "vision_config": _SIGLIP}


def _gemma4(ids: dict[str, int]) -> dict[str, Any]:
    marks = {"image_token_id": "<|image|>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>"}
    marks |= {"video_token_id": "<|video|>", "audio_token_id": "<|audio|>"}
    tower = {"patch_size": PATCH, "pooling_kernel_size": 2, "position_embedding_size": 512, "hidden_size": 32}
    tower |= {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    tower |= {"head_dim": 16, "model_type": "gemma4_vision"}
    vocabulary = {"vocab_size_per_layer_input": VOCABULARY}
    return {**{name: ids[mark] for name, mark in marks.items()}, "vision_config": tower, "text_config": vocabulary}


def _llama4(ids: dict[str, int]) -> dict[str, Any]:
    tower = {"image_size": TILE, "patch_size": PATCH, "pixel_shuffle_ratio": 0.5, "intermediate_size": 128}
    return {"image_token_index": ids["<|patch|>"], "vision_config": tower}


def _lfm2(ids: dict[str, int]) -> dict[str, Any]:
    tower = {"patch_size": PATCH, "num_patches": 64, "vision_use_head": False}
    return {"image_token_id": ids["<image>"], "vision_config": tower, "projector_hidden_size": 64}


def _minicpm(ids: dict[str, int]) -> dict[str, Any]:
    tower = {"patch_size": PATCH, "image_size": 4 * TILE, "num_hidden_layers": 3}
    return {"image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"], "vision_config": tower,
            "insert_layer_id": 1}  # fmt: skip


_DEEPSEEK = _dialect("<image_placeholder>", named={"image_token": "<image_placeholder>"})
_MINICPM = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
            "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
            "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>"}  # fmt: skip
_SOUND = {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
_GEMMA = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", **_SOUND}

MORE_FAMILIES: dict[str, MoreFamily] = {
    family.model_type: family
    for family in (
        MoreFamily(
            "mistral3",
            _dialect("[IMG]", others="[IMG] [IMG_BREAK] [IMG_END]"),
            Parts("PixtralProcessor", "PixtralImageProcessorPil", "pixtral",
                  {"size": {"longest_edge": 64}, "patch_size": {"height": PATCH, "width": PATCH}},
                  {"patch_size": PATCH, "spatial_merge_size": 2}),
            _mistral3,
        ),
        MoreFamily(
            "glm4v",
            _dialect("<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>",
                     others="<|image|> <|video|> <|begin_of_image|> <|end_of_image|> <|begin_of_video|> "
                     "<|end_of_video|>"),
            Parts("Glm4vProcessor", "Glm4vImageProcessorPil", "glm4v", _PIXELS, videos="Glm4vVideoProcessor"),
            _glm4v,
        ),
        MoreFamily(
            "ovis2",
            _dialect("<image>", others="<image> <IMG_ATOM> <IMG_START> <IMG_GRID> <IMG_COL> <IMG_ROW> <IMG_END>"),
            Parts("Ovis2Processor", "Ovis2ImageProcessorPil", "ovis2",
                  {"size": _SQUARE, "crop_to_patches": True, "max_patches": 6}, {"image_seq_length": 16}),
            _ovis2,
        ),
        MoreFamily(
            "aya_vision",
            _dialect("<image>", others="<image> <|START_OF_IMG|> <|END_OF_IMG|> <|IMG_PATCH|> <|IMG_LINE_BREAK|>"),
            Parts("AyaVisionProcessor", "GotOcr2ImageProcessorPil", "got_ocr2", {"size": _SQUARE, "max_patches": 4},
                  {"patch_size": PATCH, "img_size": TILE, "downsample_factor": 2}),
            _aya,
        ),
        MoreFamily(
            "paligemma",
            _dialect("<image>", named={"image_token": "<image>"}),
            Parts("PaliGemmaProcessor", "SiglipImageProcessorPil", "siglip", {"size": _SQUARE, "image_seq_length": 64}),
            _paligemma,
        ),
        MoreFamily(
            "molmo2",
            _dialect("<|image|>", others="<|image|> <|video|> <im_patch> <im_col> <im_start> <low_res_im_start> "
                     "<frame_start> <im_end> <frame_end> <im_low>"),
            Parts("Molmo2Processor", "Molmo2ImageProcessor", "molmo2",
                  {"size": _SQUARE, "patch_size": PATCH, "overlap_margins": [1, 1], "max_crops": 4}, backend=""),
            _molmo2,
        ),
        MoreFamily(
            "deepseek_vl",
            _DEEPSEEK,
            Parts("DeepseekVLProcessor", "DeepseekVLImageProcessorPil", "deepseek_vl",
                  {"size": _SQUARE, "min_size": PATCH}, {"num_image_tokens": 64}),
            _deepseek,
        ),
        MoreFamily(
            "gemma4",
            _dialect("<|image|>", named=_GEMMA, others="<|video|>"),
            Parts("Gemma4Processor", "Gemma4ImageProcessorPil", "gemma4",
                  {"patch_size": PATCH, "pooling_kernel_size": 2, "max_soft_tokens": 70}),
            _gemma4,
        ),
        MoreFamily(
            "llama4",
            _dialect("<|image|>", others="<|image|> <|image_start|> <|image_end|> <|patch|> <|tile_x_separator|> "
                     "<|tile_y_separator|>"),
            Parts("Llama4Processor", "Llama4ImageProcessor", "llama4", {"size": _SQUARE, "max_patches": 4},
                  {"patch_size": PATCH}, backend=""),
            _llama4,
        ),
        MoreFamily(
            "lfm2_vl",
            _dialect("<image>", others="<image> <|image_start|> <|image_end|> <|img_thumbnail|>"),
            Parts("Lfm2VlProcessor", "Lfm2VlImageProcessor", "lfm2_vl",
                  {"encoder_patch_size": PATCH, "tile_size": TILE, "size": _SQUARE, "min_image_tokens": 4,
                   "max_image_tokens": 16, "max_tiles": 6}, backend=""),
            _lfm2,
        ),
        MoreFamily(
            "minicpmv4_6",
            _dialect("<|image_pad|>", "<|video_pad|>", named=_MINICPM),
            Parts("MiniCPMV4_6Processor", "MiniCPMV4_6ImageProcessorPil", "minicpmv4_6",
                  {"patch_size": PATCH, "scale_resolution": TILE, "max_slice_nums": 6, "slice_mode": True,
                   "downsample_mode": "16x"}),
            _minicpm,
        ),
    )
}  # fmt: skip
