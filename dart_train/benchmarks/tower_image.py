"""`bench tower --image FILE`: the vision tower on an image of the user's own, all of it and without repeated pixels."""

from __future__ import annotations

import argparse
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ..hooks import attach
from ..models.structure import find_parts
from ..models.towers import find_tower
from ..profiling.device import DevicePeak
from ..profiling.op_count import OpCount, count_ops
from ..profiling.timing import Timing, ratio, rounds
from ..reduction import KeepAll, Reducer, TowerDART
from .cli import repeats_of, scale_of
from .comparison import each_shape
from .model_shapes import ModelShape
from .table import BenchTable, Row, milliseconds, percent, ratio_text, times
from .workloads import random_model

ENTIRE, DISTINCT = "entire tower", "without repeated pixels"
MODELS = ("llava", "qwen2_5_vl", "qwen3_vl")  # LLaVA-NeXT cuts an image into tiles of LLaVA's size


def bench_tower(options: argparse.Namespace) -> BenchTable:
    image = Image.open(options.image).convert("RGB")
    rows = each_shape(options, functools.partial(_measure, image), *MODELS)
    return BenchTable("Vision tower", COLUMNS, rows, NOTES)


def _measure(
    image: Image.Image, shape: ModelShape, peak: DevicePeak, options: argparse.Namespace
) -> list[dict[str, Any]]:
    if shape.key not in MODELS:
        raise ValueError(f"--models {shape.key}: expected some of {', '.join(MODELS)}")
    model = random_model(shape, scale_of(options), options.device, options.dtype)
    encode = _encoder(model, shape, image, options)
    with attach(model, [TowerDART(tolerance=0.0), KeepAll()]) as attached:
        encode()
        found = attached.tower_units
    chosen = found[0] if found else None
    size = len(find_tower(find_parts(model)).pixels_of_units(encode.keywords["pixel_values"]))
    kept = size if chosen is None else len(chosen.kept)

    def reduced() -> object:
        with attach(model, [TowerDART(tolerance=0.0), KeepAll()]):
            return encode()

    bound = _count_blocks(model, encode, peak, None).seconds / _count_blocks(model, encode, peak, 0.0).seconds
    first, seconds = rounds(
        {ENTIRE: encode, DISTINCT: reduced}, options.device, repeats_of(options), options.seconds, f"{shape.key} tower"
    )
    return [_row(shape.name, name, size, size if name == ENTIRE else kept, first, seconds, bound) for name in seconds]


def _row(
    model: str, name: str, units: int, kept: int, first: Any, seconds: dict[str, list[float]], bound: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"model": model, "way": name, "units": units, "units left": kept / units}
    row["seconds"] = Timing.of(seconds[name] or [first[name]], warm=bool(seconds[name]))
    if name == DISTINCT and seconds[ENTIRE] and seconds[name]:
        row |= {"faster": ratio(seconds[ENTIRE], seconds[name]), "bound": bound}
        row["time left"] = 1 / row["faster"].median
    return row


def _encoder(model: Any, shape: ModelShape, image: Image.Image, options: argparse.Namespace) -> Any:
    """A call from pixels to image features, as a forward makes it."""
    encode = find_parts(model).inner.get_image_features
    pixels = process(model.config, shape, image)
    inputs = {
        name: x.to(options.device, options.dtype if x.is_floating_point() else None) for name, x in pixels.items()
    }
    inputs = {name: inputs[name] for name in inputs.keys() & inspect.signature(encode).parameters}
    return functools.partial(torch.no_grad()(encode), **inputs)


def process(config: Any, shape: ModelShape, image: Image.Image) -> dict[str, Tensor]:
    """The image, resized to the grid of the shape, as the family's processor gives it to the tower."""
    vision = config.vision_config
    height, width = (side * vision.patch_size for side in shape.grid)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    if shape.key.startswith("qwen"):
        sizes = {"patch_size": vision.patch_size, "temporal_patch_size": vision.temporal_patch_size}
        processor: Any = Qwen2VLImageProcessorPil(**sizes, merge_size=vision.spatial_merge_size, do_resize=False)
    else:
        processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    return dict(processor(images=[image], return_tensors="pt"))


def _count_blocks(model: Any, encode: Callable[[], object], peak: DevicePeak, tolerance: float | None) -> OpCount:
    """The blocks of the tower, as they are called."""
    calls: list[Callable[[], object]] = []
    stages: list[Reducer | TowerDART] = (
        [KeepAll()] if tolerance is None else [TowerDART(tolerance=tolerance), KeepAll()]
    )

    def capture(module: Any, args: Any, kwargs: Any) -> None:
        calls.append(functools.partial(module, *args, **kwargs))

    with attach(model, stages):
        blocks = find_tower(find_parts(model)).blocks
        handles = [block.register_forward_pre_hook(capture, with_kwargs=True) for block in blocks]
        encode()
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        return functools.reduce(lambda total, call: total + count_ops(call, peak), calls, OpCount())


def _text(name: str, write: Callable[[Any], str]) -> Callable[[Row], str]:
    return lambda row: write(row[name]) if name in row else ""


COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: str(row["model"]),
    "variant": lambda row: str(row["way"]),
    "units": _text("units", str),
    "units that run": _text("units left", percent),
    "time left": _text("time left", percent),
    "faster, median [quartiles]": _text("faster", ratio_text),
    "bound (blocks alone)": _text("bound", times),
    "ms, median [quartiles]": _text("seconds", milliseconds),
    "repeats": lambda row: str(row["seconds"].repeats),
}
NOTES = (
    "From pixels to image features, with random weights in the real model classes; the image is resized to the "
    "shape's.",
    f"{DISTINCT}: TowerDART(layer=0, tolerance=0.0). A unit (2 x 2 patches in Qwen's towers, a patch in LLaVA's) whose "
    "pixels repeat those of another one does not run. Comparing the pixels, and attaching the reduction, is in its "
    "time.",
    "Time left: of the entire tower's; below the share of units that run it may be because attention is quadratic.",
)
