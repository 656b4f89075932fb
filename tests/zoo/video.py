"""Video batches of the families that train on videos, without torchvision.

The family's own processor places the tokens (and Qwen3-VL's timestamps). Of the Qwen families, frames are cut into
patches here, in the layout of the real video processors, which would need torchvision; those of LLaVA-OneVision are
made by this package's own video processor.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.video_utils import VideoMetadata

from dart_train.models.pil_frames import PilFrameProcessor
from dart_train.models.processors import NoVideo
from tests.zoo.batches import make_image
from tests.zoo.processors import PATCH, TILE, processor_of

MERGE = 2
FRAMES_PER_PATCH = 2
QWEN_WITH_VIDEO = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FAMILIES_WITH_VIDEO = (*QWEN_WITH_VIDEO, "llava_onevision")
# Of the video processors of Qwen-VL and of LLaVA-OneVision, for tiny frames.
TINY_PATCHES = {"patch_size": PATCH, "size": {"shortest_edge": 64, "longest_edge": 64 * 64 * 8}}
SQUARE_FRAMES = {"size": {"height": TILE, "width": TILE}}
_ENCODED = (*FAMILIES_WITH_VIDEO, "qwen3_5")  # a hybrid, which is not among FAMILIES


class PatchedFrames(NoVideo):
    """Cuts frames into patches: two frames deep, 4x4 pixels, merged neighbours next to each other."""

    merge_size = MERGE
    temporal_patch_size = FRAMES_PER_PATCH

    def __call__(self, videos: list[list[list[Image.Image]]], **kwargs: Any) -> BatchFeature:
        flat = [video for row in videos for video in row]
        cut = [_patches(np.stack([np.asarray(frame) for frame in video])) for video in flat]
        return BatchFeature(
            {
                "pixel_values_videos": torch.cat([patches for patches, _ in cut]),
                "video_grid_thw": torch.tensor([grid for _, grid in cut]),
                "video_metadata": [metadata(len(video)) for video in flat],
            }
        )


def metadata(frames: int) -> VideoMetadata:
    return VideoMetadata(frames, fps=2.0, frames_indices=list(range(frames)))


def _patches(frames: np.ndarray) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """`[frames, height, width, 3]` bytes -> `[patches, values of a patch]` in -1..1, and the grid t, h, w."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    t, h, w = frames.shape[0] // FRAMES_PER_PATCH, frames.shape[1] // PATCH, frames.shape[2] // PATCH
    blocks = pixels.reshape(t, FRAMES_PER_PATCH, 3, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH)
    return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1), (t, h, w)


def make_video_batch(
    name: str, frames: tuple[int, ...] = (), padding_side: str = "left", labels: bool = False
) -> dict[str, torch.Tensor]:
    """Row i: a video of `frames[i]` frames, a question of its own length, and the prompt to answer. Of the Qwen
    families a number of frames is even, and by default rows differ in it; of LLaVA-OneVision it is equal. labels: the
    last five tokens of each row."""
    if name not in _ENCODED:
        raise ValueError(f"no tiny videos for {name!r}, only for {', '.join(_ENCODED)}")
    batch = encode_videos(video_processor_of(name), frames or frames_of(name), padding_side)
    if labels:
        real = batch["attention_mask"].long()
        last = real.flip(1).cumsum(1).flip(1) <= 5
        batch["labels"] = torch.where(last & real.bool(), batch["input_ids"], -100)
    return batch


def frames_of(name: str) -> tuple[int, int]:
    return (4, 4) if name == "llava_onevision" else (4, 6)


def video_processor_of(name: str) -> Any:
    """The family's processor, with a video processor for tiny frames."""
    processor = copy.copy(processor_of(name))
    if name == "llava_onevision":
        processor.video_processor = PilFrameProcessor("LlavaOnevisionProcessor", SQUARE_FRAMES)
    else:
        processor.video_processor = PatchedFrames({})
    return processor


def encode_videos(
    processor: ProcessorMixin, frames: tuple[int, ...], padding_side: str = "left", **settings: Any
) -> dict[str, torch.Tensor]:
    rows = []
    for number, count in enumerate(frames):
        question = {"type": "text", "text": " ".join(["what moves"] * (1 + number))}
        rows.append([{"role": "user", "content": [{"type": "video", "video": clip(count, number)}, question]}])
    encoded = processor.apply_chat_template(
        rows,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": padding_side, **settings},
    )
    return dict(encoded)


def clip(frames: int, number: int) -> list[Image.Image]:
    """Frames of one size, 32 wide and 24 or more high; another `number` is another clip."""
    return [make_image(1000 * number + frame, (32, 24 + 8 * number)) for frame in range(frames)]
