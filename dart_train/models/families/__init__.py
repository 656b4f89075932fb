"""Model families: one file each, with everything that is known of that family.

To add one, write a file that registers a `Family` record and import it here.
"""

from . import gemma3, idefics3, internvl, llava, llava_next, qwen_vl
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
    "families",
    "family_of_processor",
    "find_family",
    "gemma3",
    "idefics3",
    "internvl",
    "llava",
    "llava_next",
    "projector_names",
    "qwen_vl",
    "register",
]
