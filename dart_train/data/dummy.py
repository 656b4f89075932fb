"""What `attach_dummy_image` shows to the vision tower: the smallest picture that the processor makes."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor

_SIDE = 32


def dummy_inputs(processor: Any) -> dict[str, Tensor]:
    """Everything that the processor makes of one small picture, beside its tokens."""
    splits = hasattr(processor.image_processor, "do_image_splitting")  # a small picture is blown up and cut in tiles
    options = {"images_kwargs": {"do_image_splitting": False}} if splits else {}
    blank = Image.new("RGB", (_SIDE, _SIDE), (127, 127, 127))
    output = processor(text=[processor.image_token], images=[[blank]], return_tensors="pt", **options)
    length = output["input_ids"].shape
    return {name: value for name, value in output.items() if value.shape != length}
