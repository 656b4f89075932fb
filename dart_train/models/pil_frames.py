"""The video processor of LLaVA-OneVision without torchvision: frames resized by Pillow, as one tensor.

Read in transformers 5.24, which resizes with torchvision: pixels may differ in the last bit of a byte, shapes and token
counts do not. Frames are never sampled here; the caller gives those that are used. Saved files name the original class.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import ImageProcessingMixin
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .pil_video import flat_clips, metadata_of

_DEFAULTS: dict[str, dict[str, Any]] = {
    "LlavaOnevisionProcessor": {
        "size": {"height": 384, "width": 384}, "image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD,
        "rescale_factor": 1 / 255, "do_resize": True, "do_rescale": True, "do_normalize": True,
        "resample": Image.Resampling.BICUBIC,
    },
}  # fmt: skip


class PilFrameProcessor(ImageProcessingMixin):
    """kind: the class name of the processor that it is part of; settings: those of the saved video processor."""

    model_input_names: ClassVar[list[str]] = ["pixel_values_videos"]
    fps = None
    num_frames = None

    def __init__(self, kind: str, settings: dict[str, Any]) -> None:
        super().__init__(**{**_DEFAULTS[kind], **settings})
        self._settings = dict(settings)

    @classmethod
    def supports(cls, kind: str) -> bool:
        return kind in _DEFAULTS

    def to_dict(self) -> dict[str, Any]:
        return dict(self._settings)

    def __call__(self, videos: Any, video_metadata: Any = None, **kwargs: Any) -> BatchFeature:
        """videos: lists of frames, nested however deep, each with as many frames as the others -> pixel_values_videos
        [videos, frames, 3, height, width]."""
        clips = list(flat_clips(videos))
        counts = sorted({len(clip) for clip in clips})
        if len(counts) > 1:
            raise ValueError(
                f"videos of {', '.join(map(str, counts))} frames were given together, expected as many frames of each: "
                "the model takes them as one tensor"
            )
        metadata = metadata_of(clips, video_metadata)
        made = {id(frame): self._pixels(frame) for clip in clips for frame in clip}  # a short clip repeats some
        pixels = np.stack([np.stack([made[id(frame)] for frame in clip]) for clip in clips])
        features = BatchFeature({"pixel_values_videos": pixels}, tensor_type=kwargs.get("return_tensors"))
        features["video_metadata"] = metadata
        return features

    def _pixels(self, frame: Image.Image) -> np.ndarray:
        """[3, height, width]"""
        frame = frame.convert("RGB")
        if self.do_resize:
            size = self.size["width"], self.size["height"]
            frame = frame if frame.size == size else frame.resize(size, Image.Resampling(self.resample))
        values: np.ndarray = np.asarray(frame, dtype=np.float32)
        if self.do_rescale:
            values = values * np.float32(self.rescale_factor)
        if self.do_normalize:
            values = (values - np.array(self.image_mean, np.float32)) / np.array(self.image_std, np.float32)
        return values.transpose(2, 0, 1)
