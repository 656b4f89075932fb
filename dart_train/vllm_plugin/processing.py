"""The prompt side: each image's placeholder has as many tokens as are kept of it, and its budget travels with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.processing import BaseMultiModalProcessor, PromptReplacement

from ..reduction.base import Reducer
from ..reduction.budget import Keep
from .image_reduction import count_kept
from .served_reduction import CONFIG_NAME, KEEP, ServedReduction


def field_name(modality: str) -> str:
    """The field of each image or video that carries its budget, as `encode_budget` writes it."""
    return f"dart_budget_{modality}"


def encode_budget(keep: Keep, number: int) -> list[float]:
    """keep, whether it is a ratio, and how many tokens the image has: one row of the field."""
    return [float(keep), float(isinstance(keep, float)), float(number)]


def decode_budget(row: Tensor) -> tuple[Keep, int]:
    keep, is_ratio, number = row.tolist()
    return (keep if is_ratio else int(keep)), int(number)


class ReducedProcessor(BaseMultiModalProcessor[Any]):
    """Put before a model's own processor class. A family defines `count_tokens`."""

    reduced_modalities: tuple[str, ...] = ("image",)

    def count_tokens(self, modality: str, index: int, mm_items: Any, processed: MultiModalKwargsItems) -> int:
        """The tokens of an image or video before the reduction."""
        raise NotImplementedError

    def _reducer(self, kwargs: Mapping[str, object]) -> Reducer:
        """At the budget of the request."""
        served = ServedReduction.of(self.info.get_hf_config())
        assert served is not None
        return served.with_keep(kwargs.get(KEEP))

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """The encoder's and the prefix's cache hold reduced images: what reduced them is part of the key."""
        served = getattr(self.info.get_hf_config(), CONFIG_NAME)
        kwargs = {**inputs.hf_processor_mm_kwargs, CONFIG_NAME: served}
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=kwargs))

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM measures the memory of an image with these: at the largest budget of a request."""
        served = ServedReduction.of(self.info.get_hf_config())
        assert served is not None
        return replace(super().get_dummy_inputs(*args, **kwargs), hf_processor_mm_kwargs={KEEP: served.largest_keep()})

    def _get_hf_mm_inputs(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        return super()._get_hf_mm_inputs(mm_items, _without_ours(hf_kwargs))

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        keep = self._reducer(hf_kwargs).keep
        data = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        if others := sorted(
            name for name, count in mm_items.get_all_counts().items() if count and not self._reduces(name)
        ):
            raise ValueError(
                f"the reduction is not defined for {', '.join(others)} inputs of this model in vLLM: send images only, "
                "or start the engine with full tokens"
            )
        fields = super()._get_mm_fields_config(data, _without_ours(hf_kwargs))
        processed = MultiModalKwargsItems.from_hf_inputs(data, fields)
        for modality, number in mm_items.get_all_counts().items():
            if number:
                counts = [self.count_tokens(modality, index, mm_items, processed) for index in range(number)]
                rows = [encode_budget(keep, count) for count in counts]
                data[field_name(modality)] = torch.tensor(rows, dtype=torch.float64)
        return data

    def _reduces(self, modality: str) -> bool:
        return modality in self.reduced_modalities

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        theirs = super()._get_mm_fields_config(hf_inputs, _without_ours(hf_processor_mm_kwargs))
        ours = {
            field_name(modality): MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
            for modality in self.reduced_modalities
        }
        return {**theirs, **ours}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: MultiModalKwargsItems
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, _without_ours(hf_processor_mm_kwargs), out_mm_kwargs)
        return [self._shorten(update, out_mm_kwargs) for update in updates if self._reduces(update.modality)]

    def _shorten(self, update: Any, out_mm_kwargs: MultiModalKwargsItems) -> PromptReplacement:
        return PromptReplacement(
            modality=update.modality,
            target=update.target,
            replacement=partial(self._placeholder, update, out_mm_kwargs),
        )

    def _placeholder(self, update: Any, out_mm_kwargs: MultiModalKwargsItems, index: int) -> list[int]:
        """As many of the model's own placeholder tokens as are kept."""
        row = out_mm_kwargs[update.modality][index][field_name(update.modality)].data
        keep, number = decode_budget(row)
        token: int = update.resolve(index).content.full[0]
        return [token] * count_kept(replace(self._reducer({}), keep=keep), number)


def _without_ours(kwargs: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in kwargs.items() if name != KEEP}
