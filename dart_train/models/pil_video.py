"""The video processor of Qwen2-VL, Qwen2.5-VL and Qwen3-VL without torchvision: frames resized by Pillow.

Frames are resized, normalised and cut into patches as by the video processors of transformers (read in 5.24), which
resize with torchvision: pixels may differ in the last bit of a byte, grids and token counts do not. Frames are never
sampled here; the caller gives those that are used. Saved files name the original class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import ImageProcessingMixin
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.video_utils import VideoMetadata

Frames = Sequence[Image.Image]
_SHARED: dict[str, Any] = {"temporal_patch_size": 2, "merge_size": 2, "cap_pixels_per_frame": None}
_QWEN2: dict[str, Any] = {
    **_SHARED, "patch_size": 14, "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768},
    "image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD, "max_video_tokens": 128000,
}  # fmt: skip
_QWEN3: dict[str, Any] = {
    **_SHARED, "patch_size": 16, "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
    "image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD, "max_video_tokens": 768,
}  # fmt: skip
_DEFAULTS = {"Qwen2VLProcessor": _QWEN2, "Qwen2_5_VLProcessor": _QWEN2, "Qwen3VLProcessor": _QWEN3}
_MAX_ASPECT = 200


class PilVideoProcessor(ImageProcessingMixin):
    """kind: the class name of the processor that it is part of; settings: those of the saved video processor."""

    model_input_names: ClassVar[list[str]] = ["pixel_values_videos", "video_grid_thw"]
    fps = None
    num_frames = None

    def __init__(self, kind: str, settings: dict[str, Any]) -> None:
        known = {**_DEFAULTS[kind], **settings}
        super().__init__(**known)
        self._settings, self.budget_for_all_frames = dict(settings), kind == "Qwen3VLProcessor"
        self.size: dict[str, int] = dict(known["size"])
        for edge, name in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
            if settings.get(name) is not None:
                self.size[edge] = settings[name]

    @classmethod
    def supports(cls, kind: str) -> bool:
        return kind in _DEFAULTS

    def to_dict(self) -> dict[str, Any]:
        return dict(self._settings)

    def limit_frames(self, max_pixels: int) -> None:
        """Frames of `max_pixels` are not enlarged; what is saved has the limit too."""
        self.size["shortest_edge"] = min(self.size["shortest_edge"], max_pixels)
        self._settings["size"] = dict(self.size)
        for name in ("min_pixels", "max_pixels"):
            self._settings.pop(name, None)

    def __call__(self, videos: Any, video_metadata: Any = None, **kwargs: Any) -> BatchFeature:
        """videos: lists of frames, nested however deep; video_metadata: one for each of them, in order."""
        clips = list(flat_clips(videos))
        metadata = metadata_of(clips, video_metadata)
        cut = [self._patches(clip) for clip in clips]
        data = {
            "pixel_values_videos": np.concatenate([patches for patches, _ in cut]),
            "video_grid_thw": np.array([grid for _, grid in cut], dtype=np.int64),
        }
        features = BatchFeature(data, tensor_type=kwargs.get("return_tensors"))
        features["video_metadata"] = metadata
        return features

    def _patches(self, frames: Frames) -> tuple[np.ndarray, tuple[int, int, int]]:
        """[patches, values of a patch], neighbours that are merged next to each other, and the grid (t, h, w)."""
        width, height = frames[0].size
        new_height, new_width = self._resized(len(frames), height, width)
        resized = [frame.convert("RGB").resize((new_width, new_height), Image.Resampling.BICUBIC) for frame in frames]
        resized += [resized[-1]] * (-len(resized) % self.temporal_patch_size)
        mean, std = (np.array(values, dtype=np.float32) * 255 for values in (self.image_mean, self.image_std))
        pixels = (np.stack([np.asarray(frame, dtype=np.float32) for frame in resized]) - mean) / std  # [T, H, W, 3]
        t, h, w = len(resized) // self.temporal_patch_size, new_height // self.patch_size, new_width // self.patch_size
        side, merge = self.patch_size, self.merge_size
        blocks = pixels.reshape(t, self.temporal_patch_size, h // merge, merge, side, w // merge, merge, side, 3)
        blocks = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)  # t, h, w, their neighbours, channel, frame, y, x
        return blocks.reshape(t * h * w, -1), (t, h, w)

    def _resized(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """(height, width) of each frame after resizing."""
        factor, least, most = self.patch_size * self.merge_size, self.size["shortest_edge"], self.size["longest_edge"]
        if max(height, width) / min(height, width) > _MAX_ASPECT:
            raise ValueError(f"frames of {width} x {height} pixels: a side is more than {_MAX_ASPECT} times the other")
        floor = int(least * 1.05)
        if self.budget_for_all_frames:
            if self.cap_pixels_per_frame:
                most = max(min(self.max_video_tokens * factor**2, most // frames), floor) * frames
            scale = max(1.0, factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
            counted = round(frames / self.temporal_patch_size) * self.temporal_patch_size
            return _fit(height, width, factor, least, most, frames, counted)
        if self.cap_pixels_per_frame:
            total = int(self.max_video_tokens * factor**2 * 0.9)
            most = max(min(most, total * self.temporal_patch_size // frames), floor)
        return _fit(height, width, factor, least, most, 1, 1)


def _fit(height: int, width: int, factor: int, least: int, most: int, frames: int, counted: int) -> tuple[int, int]:
    """Multiples of `factor`, the area of `frames` frames between the limits, the aspect ratio kept as far as possible.
    counted: the frames that the rounded area is compared with the limits by."""
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if counted * new_height * new_width > most:
        shrink = math.sqrt(frames * height * width / most)
        new_height, new_width = (max(factor, math.floor(s / shrink / factor) * factor) for s in (height, width))
    elif counted * new_height * new_width < least:
        grow = math.sqrt(least / (frames * height * width))
        new_height, new_width = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return new_height, new_width


def metadata_of(clips: Sequence[Frames], given: Any) -> list[VideoMetadata]:
    """One for each clip: those that were given, in order, or else that every frame is used."""
    found = list(given or [])
    if len(found) not in (0, len(clips)):
        raise ValueError(f"{len(found)} video_metadata were given for {len(clips)} videos")
    return found or [VideoMetadata(len(clip), frames_indices=list(range(len(clip)))) for clip in clips]


def flat_clips(videos: Any) -> Iterator[Frames]:
    """The frames of each video, of videos nested however deep."""
    if not isinstance(videos, Sequence) or isinstance(videos, str) or not videos:
        raise ValueError(
            f"a video was given as {type(videos).__name__}; without torchvision give its frames, as a list of images, "
            "or install torchvision"
        )
    if isinstance(videos[0], Image.Image):
        yield videos
    else:
        for inner in videos:
            yield from flat_clips(inner)
