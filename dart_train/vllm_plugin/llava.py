"""LLaVA-1.5 and LLaVA-NeXT. Kept tokens keep the positions that they had among all.

Their one position a token is served as M-RoPE whose first section is the complete head. Row 0 carries the positions;
row 1 is where the token's image begins, and row 2 where its last token would be. For text all three are the position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageProcessorItems

from .processing import ReducedProcessor, decode_budget, field_name
from .reduced_model import ReducedModel
from .row_positions import linear_offsets


class _LlavaTokenCount(ReducedProcessor):
    def count_tokens(self, modality: str, index: int, mm_items: Any, processed: Any) -> int:
        size = mm_items.get_items(modality, ImageProcessorItems).get_image_size(index)
        count: int = self.info.get_num_image_tokens(image_width=size.width, image_height=size.height)
        return count


class ReducedLlavaProcessor(_LlavaTokenCount, LlavaMultiModalProcessor):
    pass


class ReducedLlavaNextProcessor(_LlavaTokenCount, LlavaNextMultiModalProcessor):
    pass


class _LinearPositions(ReducedModel):
    """Models with one position a token."""

    config: Any

    def check_rotary_embedding(self) -> None:
        """The decoder's class must have read `mrope_section`; one that ignores it would serve wrong positions."""
        layer = self.language_model.model.layers[0]  # type: ignore[attr-defined]
        found = layer.self_attn.rotary_emb
        if not isinstance(found, MRotaryEmbedding):
            raise NotImplementedError(
                f"the decoder {type(self.language_model).__name__} has {type(found).__name__}, which cannot keep the "  # type: ignore[attr-defined]
                "positions of kept tokens; serve this model with python -m dart_train serve"
            )

    def offsets(self, modality: str, index: int, number: int, kwargs: Mapping[str, Any]) -> Tensor:
        return linear_offsets(number)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Text is where it would be with all tokens (compact: with those that are kept); which tokens an image's rows
        are, the encoder will say."""
        length = len(input_tokens)
        position = torch.arange(length)
        images = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        spans = [(each.mm_position.offset, each.mm_position.length, self._extent(each)) for each in images]
        for start, kept, extent in spans:
            position[start + kept :] += extent - kept
        begin, end = position.clone(), position.clone()
        for start, kept, extent in spans:
            begin[start : start + kept] = position[start]
            end[start : start + kept] = position[start] + extent - 1
        return torch.stack([position, begin, end]), int(end[-1]) + 1 - length

    def _extent(self, feature: Any) -> int:
        """How many positions an image takes."""
        if self.served.renumbers:
            return int(feature.mm_position.length)
        return decode_budget(feature.data[field_name(feature.modality)].data)[1]

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Sequence[Tensor], mrope_positions: Tensor, num_computed_tokens: int
    ) -> tuple[list[Tensor], Tensor, int]:
        short, ids, places, offsets = self._split_rows(
            multimodal_embeddings,
            input_ids,
            [self.config.image_token_index],
            num_computed_tokens,
            mrope_positions.device,
        )
        positions = mrope_positions.clone()
        positions[0, places] = positions[1, places] + offsets[:, 0].to(positions.dtype)
        return short, positions, int(positions[2, -1]) + 1 - len(ids)


@MULTIMODAL_REGISTRY.register_processor(
    ReducedLlavaProcessor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class ReducedLlava(_LinearPositions, LlavaForConditionalGeneration):
    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.prepare_reduction(vllm_config)
        self.check_rotary_embedding()

    def tiles(self, modality: str, index: int, kwargs: Mapping[str, Any]) -> list[tuple[int, int]]:
        vision = self.config.vision_config
        across = vision.image_size // vision.patch_size
        return [(across, across)]


@MULTIMODAL_REGISTRY.register_processor(
    ReducedLlavaNextProcessor, info=LlavaNextProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class ReducedLlavaNext(_LinearPositions, LlavaNextForConditionalGeneration):
    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.prepare_reduction(vllm_config)
        self.check_rotary_embedding()
