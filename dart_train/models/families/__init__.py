"""Model families: one file each, with everything that is known of that family.

To add one, write a file that registers a `Family` record and import it here.
"""

from . import (
    aya_vision,
    deepseek_vl,
    gemma3,
    gemma4,
    glm4v,
    idefics3,
    internvl,
    lfm2_vl,
    llama4,
    llava,
    llava_next,
    minicpmv,
    mistral3,
    molmo2,
    ovis2,
    paligemma,
    qwen_vl,
)
from .family import (
    GENERIC,
    Family,
    UnknownGridError,
    families,
    family_of_processor,
    find_family,
    projector_names,
    register,
)
from .geometry import Box, ImageInfo, Tile, TokenGrid, TokenPlace
from .resizer import GridResizer, ResizedImage, Resizer

__all__ = [
    "GENERIC",
    "Box",
    "Family",
    "GridResizer",
    "ImageInfo",
    "ResizedImage",
    "Resizer",
    "Tile",
    "TokenGrid",
    "TokenPlace",
    "UnknownGridError",
    "aya_vision",
    "deepseek_vl",
    "families",
    "family_of_processor",
    "find_family",
    "gemma3",
    "gemma4",
    "glm4v",
    "idefics3",
    "internvl",
    "lfm2_vl",
    "llama4",
    "llava",
    "llava_next",
    "minicpmv",
    "mistral3",
    "molmo2",
    "ovis2",
    "paligemma",
    "projector_names",
    "qwen_vl",
    "register",
]
