"""The real Hugging Face processor of each family, over the tiny tokenizer and for tiny images."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass, field
from typing import Any

import transformers
from transformers import ProcessorMixin

from dart_train.models.processors import NoVideo
from dart_train.models.transformers_compat import build_processor
from tests.zoo.dialects import DIALECTS, Dialect

TILE = 32  # side, in pixels, of what the fixed-size vision towers look at
PATCH = 4
TILES = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]

_SQUARE = {"height": TILE, "width": TILE}
_CROP = {"size": {"shortest_edge": TILE}, "crop_size": _SQUARE}
_SPLIT = {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}
# Qwen merges 2x2 patches, so a token is 8x8 pixels: 16 to 64 tokens an image.
_PIXELS = {"size": {"shortest_edge": 16 * 64, "longest_edge": 64 * 64}, "patch_size": PATCH}
_WITHOUT_CLASS_TOKEN = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


@dataclass(frozen=True)
class Parts:
    """A processor class, the image processor inside it, and the settings of both."""

    processor: str
    images: str
    package: str  # where transformers keeps that image processor
    image_settings: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    videos: str | None = None
    backend: str = "pil_"  # empty where the image processor needs torchvision


def _qwen(processor: str, videos: str) -> Parts:
    return Parts(processor, "Qwen2VLImageProcessorPil", "qwen2_vl", _PIXELS, videos=videos)


PARTS: dict[str, Parts] = {
    "llava": Parts(
        "LlavaProcessor",
        "CLIPImageProcessorPil",
        "clip",
        _CROP,
        {"patch_size": PATCH, **_WITHOUT_CLASS_TOKEN},
    ),
    "llava_next": Parts(
        "LlavaNextProcessor",
        "LlavaNextImageProcessorPil",
        "llava_next",
        {**_CROP, "image_grid_pinpoints": TILES},
        {"patch_size": 2 * PATCH, **_WITHOUT_CLASS_TOKEN},
    ),
    "llava_onevision": Parts(
        "LlavaOnevisionProcessor",
        "LlavaOnevisionImageProcessorPil",
        "llava_onevision",
        {"size": _SQUARE, "image_grid_pinpoints": TILES},
        {
            "num_image_tokens": 16,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_4",
        },
        "LlavaOnevisionVideoProcessor",
    ),
    "qwen2_vl": _qwen("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": _qwen("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": _qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "qwen3_5": _qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "internvl": Parts(
        "InternVLProcessor",
        "GotOcr2ImageProcessorPil",
        "got_ocr2",
        {"size": _SQUARE, "max_patches": 4},
        {"image_seq_length": 16},
        "InternVLVideoProcessor",
    ),
    "idefics3": Parts("Idefics3Processor", "Idefics3ImageProcessorPil", "idefics3", _SPLIT, {"image_seq_len": 16}),
    "smolvlm": Parts(
        "SmolVLMProcessor",
        "SmolVLMImageProcessorPil",
        "smolvlm",
        _SPLIT,
        {"image_seq_len": 16},
        "SmolVLMVideoProcessor",
    ),
    "gemma3": Parts(
        "Gemma3Processor", "Gemma3ImageProcessorPil", "gemma3", {"size": _SQUARE}, {"image_seq_length": 16}
    ),
}


@functools.cache
def processor_of(name: str) -> ProcessorMixin:
    """The family's processor; one object for all who ask, so leave it as it is."""
    return make_processor(PARTS[name], DIALECTS[name])


def make_processor(parts: Parts, dialect: Dialect) -> ProcessorMixin:
    file = f"image_processing_{parts.backend}{parts.package}"
    home = importlib.import_module(f"transformers.models.{parts.package}.{file}")
    built: dict[str, Any] = {
        "image_processor": getattr(home, parts.images)(**parts.image_settings),
        "tokenizer": dialect.tokenizer(),
        "video_processor": NoVideo({"video_processor_type": parts.videos, **parts.image_settings}),
    }
    if "feature_extractor" in getattr(transformers, parts.processor).get_attributes():  # of sounds
        built["feature_extractor"] = transformers.Gemma4AudioFeatureExtractor()
    kind = getattr(transformers, parts.processor)
    settings = {**parts.settings, "chat_template": dialect.turns.template()}
    return build_processor(kind, [built[part] for part in kind.get_attributes()], settings)
