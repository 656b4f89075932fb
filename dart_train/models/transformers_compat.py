"""Everything of transformers that is not its public interface and that this package calls or changes.

Read in transformers 5.23 and 5.24.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

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
