"""Everything of transformers that is not its public interface and that this package calls or changes.

Read in transformers 5.23 and 5.24.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin


def anyres_grid_shape(height: int, width: int, pinpoints: Any, encoder_side: int) -> tuple[int, int]:
    """(rows, columns) of the tiles that LLaVA-NeXT and LLaVA-OneVision cut an image into."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    rows, columns = get_anyres_image_grid_shape([height, width], pinpoints, encoder_side)
    return int(rows), int(columns)


def count_image_tokens(processor: Any, height: int, width: int) -> tuple[int, int]:
    """(visual tokens, encoder inputs) of an image. `_get_num_multimodal_tokens` is what vLLM calls as well."""
    counted = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
    return int(counted["num_image_tokens"][0]), int(counted["num_image_patches"][0])


def canvas_grid(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of the tiles that InternVL's image processor cuts an image into."""
    tile = image_processor.size["height"], image_processor.size["width"]
    choose = _sibling_function(image_processor, "get_optimal_tiled_canvas")
    columns, rows = choose((height, width), tile, image_processor.min_patches, image_processor.max_patches)
    return rows, columns


def split_grid(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of the tiles that the image processor of Idefics3 and SmolVLM cuts an image into; 0 without."""
    _, rows, columns = image_processor.get_number_of_image_patches(height, width, {})
    return rows, columns


def smart_resize(image_processor: Any, height: int, width: int, factor: int) -> tuple[int, int]:
    """(height, width) that Qwen-VL's image processor resizes an image to."""
    least, most = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
    resized = _sibling_function(image_processor, "smart_resize")(height, width, factor, least, most)
    return int(resized[0]), int(resized[1])


def smart_resize_of_frames(image_processor: Any, height: int, width: int, factor: int) -> tuple[int, int]:
    """(height, width) that GLM-4V's image processor resizes an image to."""
    frames, size = image_processor.temporal_patch_size, image_processor.size
    resized = _sibling_function(image_processor, "smart_resize")(
        num_frames=frames,
        height=height,
        width=width,
        temporal_factor=frames,
        factor=factor,
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
    )
    return int(resized[0]), int(resized[1])


def pixtral_size(processor: Any, height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) that Pixtral's image processor resizes an image to, for tokens `side` pixels wide."""
    size, patch = processor.image_processor.size["longest_edge"], (side, side)
    resize = _sibling_function(processor, "get_resize_output_image_size")
    resized = resize(np.zeros((height, width, 3), dtype=np.uint8), size=(size, size), patch_size=patch)
    return int(resized[0]), int(resized[1])


def covering_grid(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of the tiles that Ovis2's image processor cuts an image into."""
    if not image_processor.crop_to_patches or image_processor.max_patches <= 1:
        return 1, 1
    tile, most = image_processor.size["height"], image_processor.max_patches
    if image_processor.use_covering_area_grid:
        columns, rows = _sibling_function(image_processor, "get_min_tile_covering_grid")((height, width), tile, most)
        return int(rows), int(columns)
    choose = _sibling_function(image_processor, "get_optimal_tiled_canvas")
    columns, rows = choose((height, width), (tile, tile), image_processor.min_patches, most)
    return int(rows), int(columns)


def aspect_preserving_size(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    """(height, width) that Gemma 4's image processor resizes an image to."""
    block = image_processor.pooling_kernel_size
    resize = _sibling_function(image_processor, "get_aspect_ratio_preserving_size")
    most = image_processor.max_soft_tokens * block**2
    resized = resize(height, width, image_processor.patch_size, most, block)
    return int(resized[0]), int(resized[1])


def llama4_canvas(image_processor: Any, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Tiles (down, across) of the canvas that Llama 4's image processor puts an image on, and the (height, width) that
    the image is resized to on it."""
    size, largest = image_processor.size, image_processor.resize_to_max_canvas
    find = _sibling_function(image_processor, "find_supported_resolutions")
    possible = torch.tensor(find(max_num_chunks=image_processor.max_patches, patch_size=size))
    canvas = _sibling_function(image_processor, "get_best_fit")((height, width), possible, resize_to_max_canvas=largest)
    down, across = (int(side) for side in canvas)
    room = (down, across)
    if not largest:
        room = min(max(height, size.height), down), min(max(width, size.height), across)
    new = _sibling_function(image_processor, "get_max_res_without_distortion")((height, width), room)
    return (down // size.height, across // size.width), (max(int(new[0]), 1), max(int(new[1]), 1))


def lfm2_layout(image_processor: Any, height: int, width: int) -> tuple[int, int, tuple[int, int]]:
    """Rows and columns of the tiles that LFM2-VL's image processor cuts an image into, and the (height, width) of a
    small image or of the overview."""
    known = {name: getattr(image_processor, name) for name in ("encoder_patch_size", "downsample_factor")}
    known["max_image_tokens"] = image_processor.max_image_tokens
    least = image_processor.min_image_tokens
    new_width, new_height = image_processor.smart_resize(height, width, min_image_tokens=least, **known)
    limits = image_processor.min_tiles, image_processor.max_tiles
    tolerance = image_processor.max_pixels_tolerance
    large = image_processor._is_image_too_large(height, width, max_pixels_tolerance=tolerance, **known)
    if not large or not image_processor.do_image_splitting or limits == (1, 1):
        return 1, 1, (int(new_height), int(new_width))
    columns, rows, *_ = image_processor._get_grid_layout(height, width, *limits, image_processor.tile_size)
    return int(rows), int(columns), (int(new_height), int(new_width))


def minicpm_layout(image_processor: Any, height: int, width: int) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Slices (rows, columns) that MiniCPM-V's image processor cuts an image into, (0, 0) without, and the (height,
    width) of the overview and of each slice."""
    side, shared = image_processor.scale_resolution, {"patch_size": image_processor.patch_size}
    shared["downsample_mode"] = image_processor.downsample_mode
    most, size = image_processor.max_slice_nums, (height, width)
    grid = image_processor.get_sliced_grid(size, most, side) if image_processor.slice_mode else None
    overview = image_processor.find_best_resize(size, side, allow_upscale=grid is None, **shared)
    if grid is None:
        return (0, 0), [overview]
    down, across = image_processor.get_refine_size(size, grid, side, allow_upscale=True, **shared)
    rows, columns = grid
    return (rows, columns), [overview, *[(down // rows, across // columns)] * (rows * columns)]


def molmo2_grids(image_processor: Any, height: int, width: int) -> tuple[int, tuple[int, int], int]:
    """Of an image, as Molmo 2's image processor cuts it: visual tokens, patches (rows, columns) of the crops put
    together, and the number of crops with the overview."""
    grid, crops = image_processor.get_image_grid_and_crops(height, width)
    compute = _sibling_function(image_processor, "compute_crop_geometry")
    patch, crop = image_processor.patch_size, image_processor.size["height"]
    margins = image_processor.overlap_margins
    *_, down, across = compute(height, width, image_processor.max_crops, margins, crop, patch)
    return grid[0] * grid[1] + grid[2] * grid[3], (down // patch, across // patch), crops


def _sibling_function(instance: Any, name: str) -> Callable[..., Any]:
    """A function of the module that the class of `instance`, or a class above it, is defined in."""
    modules = [sys.modules[cls.__module__] for cls in type(instance).__mro__]
    found: Callable[..., Any] = next(getattr(module, name) for module in modules if hasattr(module, name))
    return found


def build_processor(kind: type[ProcessorMixin], parts: Iterable[Any], settings: dict[str, Any]) -> ProcessorMixin:
    """A processor of class `kind` from its parts, in the order of `processor_parts`.

    A processor checks the classes of its parts against names that transformers has only together with torchvision.
    The check is disabled while the object is built; afterwards the object is an ordinary `kind`.
    """
    no_check = {"check_argument_for_proper_class": lambda self, name, part: type(part)}
    unchecked: Any = type(kind.__name__, (kind,), no_check)
    processor: ProcessorMixin = unchecked.from_args_and_dict(list(parts), dict(settings))
    processor.__class__ = kind
    return processor


def processor_settings(kind: type[ProcessorMixin], path: str) -> dict[str, Any]:
    settings, _ = kind.get_processor_dict(path)
    return dict(settings)


def processor_parts(kind: type[ProcessorMixin]) -> Sequence[str]:
    """Names of the parts (image_processor, tokenizer, ...), in the order of the constructor."""
    return list(kind.get_attributes())
