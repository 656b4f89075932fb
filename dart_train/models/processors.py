"""The processor of a model, with torchvision and without it.

Hugging Face's video processors need torchvision, and the processors of Qwen-VL, LLaVA-OneVision, InternVL and SmolVLM
need a video processor even for images alone. Without torchvision, `AutoProcessor` fails or returns only a tokenizer.
Here the same processor class is built from its parts, with a video processor of this package for Qwen-VL and
LLaVA-OneVision, and `NoVideo` in place of others: images work, a video raises an error, and the saved files name the
original classes, so that a machine with torchvision loads the complete processor again.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any, ClassVar

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.image_processing_utils import ImageProcessingMixin
from transformers.image_utils import SizeDict
from transformers.models.auto.image_processing_auto import get_image_processor_config
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.models.auto.video_processing_auto import get_video_processor_config
from transformers.utils import is_torchvision_available

from ..common.hub import cached_first
from .families import families, family_of_processor
from .pil_frames import PilFrameProcessor
from .pil_video import PilVideoProcessor
from .transformers_compat import build_processor, processor_parts, processor_settings

log = logging.getLogger(__name__)
_REMEDY = "save the model's own processor there: processor.save_pretrained(folder)"


class NoVideo(ImageProcessingMixin):
    """In place of a video processor: keeps its settings and refuses videos."""

    model_input_names: ClassVar[list[str]] = []
    fps = None
    num_frames = None  # SmolVLM's `apply_chat_template` reads both for every conversation

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(**settings)
        self._settings = dict(settings)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            "a video was given, but this processor was loaded without torchvision and takes only images; "
            "install torchvision and load it again"
        )

    def to_dict(self) -> dict[str, Any]:
        return dict(self._settings)


def load_processor(
    path: str,
    *,
    trust_remote_code: bool = False,
    max_pixels: int | None = None,
    min_pixels: int | None = None,
    template: str | None = None,
) -> ProcessorMixin:
    """The processor that belongs to the model at `path`, a folder or a hub id. template: the Jinja source of a chat
    template in place of its own.

    `max_pixels` and `min_pixels` bound the area that an image is resized to, for processors that resize to a number of
    pixels (Qwen-VL); any other raises `ValueError` for them.
    """
    if trust_remote_code:
        warn_remote_code(str(path))
    processor = cached_first(lambda: _load(str(path), trust_remote_code), str(path))
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(f"{str(path)!r} has no processor, only a {type(processor).__name__}; {_REMEDY}")
    if max_pixels is not None or min_pixels is not None:
        limit_pixels(processor, min_pixels, max_pixels)
    if template is not None:
        set_chat_template(processor, template)
    return processor


def set_chat_template(processor: Any, source: str) -> None:
    """What is saved with the processor from now on; its tokenizer may have a copy."""
    processor.chat_template = source
    if getattr(processor.tokenizer, "chat_template", None) is not None:
        processor.tokenizer.chat_template = source


@cache
def warn_remote_code(path: str) -> None:
    """Once per process, on the first rank only."""
    if os.environ.get("RANK", "0") == "0":
        log.warning("trust_remote_code: Python code from %s runs on this machine", path)


def _load(path: str, trust_remote_code: bool) -> Any:
    kind = _processor_class(path)
    if kind is None and not trust_remote_code:
        raise ValueError(
            f"{path!r} has no processor that transformers knows; {_REMEDY}, or set trust_remote_code if it has its own "
            "code and you trust it"
        )
    if kind is None or is_torchvision_available():
        return AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    try:
        parts = [_load_part(name, path, kind.__name__) for name in processor_parts(kind)]
    except OSError as error:
        raise ValueError(f"{path!r}: a part of its {kind.__name__} is missing: {error}; {_REMEDY}") from error
    return build_processor(kind, parts, processor_settings(kind, path))


def _load_part(name: str, path: str, kind: str) -> Any:
    if name == "image_processor":
        return AutoImageProcessor.from_pretrained(path, backend="pil")
    if name == "video_processor":
        settings = get_video_processor_config(path)
        own = next((each for each in (PilVideoProcessor, PilFrameProcessor) if each.supports(kind)), None)
        return NoVideo(settings) if own is None else own(kind, settings)
    if name == "tokenizer":
        return AutoTokenizer.from_pretrained(path)
    raise ValueError(f"the processor of {path!r} needs a part {name!r}; only images and text are supported")


def _processor_class(path: str) -> type[ProcessorMixin] | None:
    """The class that the folder's files name, or the one that belongs to the model type."""
    settings = processor_settings(ProcessorMixin, path)
    for saved in (settings, get_image_processor_config(path), get_tokenizer_config(path)):
        if saved.get("processor_class"):
            return processor_class_from_name(saved["processor_class"])
    try:
        return PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(path)), None)
    except (OSError, ValueError):  # no config.json, or an unknown model type
        return None


def takes_pixel_limits(processor: Any) -> bool:
    """Whether the image processor resizes to a number of pixels (Qwen-VL)."""
    return "max_pixels" in processor.image_processor.valid_kwargs.__annotations__


def video_problem(processor: Any) -> str | None:
    """Why rows with videos cannot be encoded with this processor; None: they can."""
    family, name = family_of_processor(processor), type(processor).__name__
    if family.no_video or not family.video_geometry:
        reason = family.no_video or "how it lays out a video is not known to this package"
        if getattr(processor, "video_processor", None) is None:
            reason = "its models read images alone"
        known = ", ".join(each.name for each in families() if each.video_geometry and not each.no_video)
        return f"{name} takes none here: {reason}; models of these families do: {known}"
    if isinstance(processor.video_processor, NoVideo):
        return f"the video processor of {name} needs torchvision, which is not installed"
    return None


def stacks_frames(processor: Any) -> bool:
    """Whether the model takes the videos of a batch as one tensor [videos, frames, ...], so that all need as many
    frames (LLaVA-OneVision)."""
    return video_problem(processor) is None and "video_grid_thw" not in processor.video_processor.model_input_names


def limit_frames(processor: Any, max_pixels: int) -> None:
    """Frames of `max_pixels` are not enlarged by the video processor, where it has one."""
    videos: Any = getattr(processor, "video_processor", None)
    if isinstance(videos, PilVideoProcessor):
        videos.limit_frames(max_pixels)
    elif getattr(getattr(videos, "size", None), "shortest_edge", None) is not None:
        videos.size = SizeDict(
            shortest_edge=min(videos.size.shortest_edge, max_pixels), longest_edge=videos.size.longest_edge
        )


def limit_pixels(processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Sets the smallest and the largest area, in pixels, that an image is resized to; None leaves it as it is."""
    image_processor = processor.image_processor
    if not takes_pixel_limits(processor):
        raise ValueError(
            f"min_pixels={min_pixels}, max_pixels={max_pixels} were given, but {type(image_processor).__name__} "
            "does not resize to a number of pixels (Qwen-VL does); leave both out"
        )
    size = dict(image_processor.size)
    least = size["shortest_edge"] if min_pixels is None else min_pixels
    most = size["longest_edge"] if max_pixels is None else max_pixels
    if not 0 < least <= most:
        raise ValueError(f"pixel limits must satisfy 0 < min_pixels <= max_pixels, got {least} and {most}")
    image_processor.size = SizeDict(shortest_edge=least, longest_edge=most)
