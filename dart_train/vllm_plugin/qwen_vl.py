"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL (with its deepstack features). Kept tokens keep their (time, row, column); text is
where it would be with all tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from .processing import ReducedProcessor
from .reduced_model import ReducedModel
from .row_positions import grid_offsets

_POSITION_FIELDS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


class _GridTokenCount(ReducedProcessor):
    reduced_modalities: tuple[str, ...] = ("image", "video")

    def count_tokens(self, modality: str, index: int, mm_items: Any, processed: Any) -> int:
        merge = self.info.get_hf_config().vision_config.spatial_merge_size
        return int(processed[modality][index][f"{modality}_grid_thw"].data.prod()) // merge**2

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """An image's place follows from the token before it, which must not be another image's."""
        result = super().apply(*args, **kwargs)
        ranges = sorted(
            (each.offset, each.offset + each.length) for items in result["mm_placeholders"].values() for each in items
        )
        if any(stop >= start for (_, stop), (start, _) in pairwise([(-1, 0), *ranges])):
            raise ValueError(
                "an image or video has no text token before it; write the prompt with the model's chat template, "
                "which puts <|vision_start|> there"
            )
        return result


class ReducedQwen2VLProcessor(_GridTokenCount, Qwen2VLMultiModalProcessor):
    pass


class ReducedQwen25VLProcessor(_GridTokenCount, Qwen2_5_VLMultiModalProcessor):
    pass


class ReducedQwen3VLProcessor(_GridTokenCount, Qwen3VLMultiModalProcessor):
    """Images only: a video is split by timestamps, and vLLM would have to spread its kept tokens over the frames
    before the encoder has chosen them."""

    reduced_modalities = ("image",)


class _GridPositions(ReducedModel):
    modalities: tuple[str, ...] = ("image", "video")
    config: Any

    def offsets(self, modality: str, index: int, number: int, kwargs: Mapping[str, Any]) -> Tensor:
        frames, height, width = self._grid(modality, index, kwargs)
        return grid_offsets(frames, height, width, self._time_factor(modality, index, kwargs))

    def tiles(self, modality: str, index: int, kwargs: Mapping[str, Any]) -> list[tuple[int, int]]:
        frames, height, width = self._grid(modality, index, kwargs)
        return [(height, width)] * frames

    def _grid(self, modality: str, index: int, kwargs: Mapping[str, Any]) -> tuple[int, int, int]:
        frames, height, width = map(int, kwargs[f"{modality}_grid_thw"][index])
        merge = self.config.vision_config.spatial_merge_size
        return frames, height // merge, width // merge

    def _time_factor(self, modality: str, index: int, kwargs: Mapping[str, Any]) -> float:
        """Positions from one frame to the next; as vLLM counts them for the model at full tokens."""
        if modality != "video":
            return 1.0
        seconds = kwargs.get("second_per_grid_ts")
        second = 1.0 if seconds is None else float(seconds[index])
        return second * float(getattr(self.config.vision_config, "tokens_per_second", 1.0))

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        length = len(input_tokens)
        position = torch.arange(length)
        images = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        for feature in images:
            start, kept = feature.mm_position.offset, feature.mm_position.length
            kwargs = {name: feature.data[name].data[None] for name in _POSITION_FIELDS if name in feature.data}
            extent = int(self.offsets(feature.modality, 0, 0, kwargs).max()) + 1
            base = position[start].clone()
            position[start + kept :] += extent - kept
            position[start : start + kept] = base
        return position.expand(3, -1).clone(), int(position[-1]) + 1 - length

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Sequence[Tensor], mrope_positions: Tensor, num_computed_tokens: int
    ) -> tuple[list[Tensor], Tensor, int]:
        visual_ids = [self.config.image_token_id, self.config.video_token_id]
        short, ids, places, offsets = self._split_rows(
            multimodal_embeddings, input_ids, visual_ids, num_computed_tokens, mrope_positions.device
        )
        order = torch.arange(len(ids), device=ids.device)
        text = ~torch.isin(ids, torch.tensor(visual_ids, device=ids.device))
        before = torch.where(text, order, -1).cummax(0).values[places]  # the text token before each image
        positions = mrope_positions.clone()
        positions[:, places] = (positions[0, before] + 1 + offsets.T).to(positions.dtype)
        return short, positions, int(positions[:, -1].max()) + 1 - len(ids)


class _Qwen2Pruning(_GridPositions):
    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.prepare_reduction(vllm_config)


@MULTIMODAL_REGISTRY.register_processor(
    ReducedQwen2VLProcessor, info=Qwen2VLProcessingInfo, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class ReducedQwen2VL(_Qwen2Pruning, Qwen2VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    ReducedQwen25VLProcessor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class ReducedQwen25VL(_Qwen2Pruning, Qwen2_5_VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    ReducedQwen3VLProcessor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class ReducedQwen3VL(_Qwen2Pruning, Qwen3VLForConditionalGeneration):
    modalities = ("image",)
