"""DeepSeek-VL: every image in the middle of one padded square of the encoder's size.

The hybrid model adds features of a second encoder, which sees the same square with more pixels, to the same tokens.
"""

from __future__ import annotations

from .family import Family, register
from .llava import interpolate_position_embeddings, square_geometry, square_tiles
from .paligemma import FixedLengthResizer


class PaddedSquareResizer(FixedLengthResizer):
    length = "num_image_tokens"


DEEPSEEK_VL = register(
    Family(
        name="DeepSeek-VL",
        model_types=("deepseek_vl",),
        tiles=square_tiles,
        geometry=square_geometry,
        processors=("DeepseekVLProcessor",),
        resizer=PaddedSquareResizer,
        accept_smaller_images=interpolate_position_embeddings,
        projectors=frozenset({"aligner"}),
    )
)
DEEPSEEK_VL_HYBRID = register(
    Family(
        name="DeepSeek-VL hybrid",
        model_types=("deepseek_vl_hybrid",),
        tiles=square_tiles,
        geometry=square_geometry,
        processors=("DeepseekVLHybridProcessor",),
        no_resizer="its second encoder takes images of one size only",
        projectors=frozenset({"aligner", "high_res_vision_neck", "high_res_vision_proj", "high_res_vision_alpha"}),
    )
)
