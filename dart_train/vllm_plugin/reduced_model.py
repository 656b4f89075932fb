"""The model side: the reduction of what the encoder returns, and the positions of what is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .image_reduction import Scorer, reduce_image
from .processing import decode_budget, field_name
from .row_positions import append_offsets, linear_offsets, split_offsets
from .scorer_weights import is_of_scorer, load_scorer
from .served_reduction import ServedReduction


class ReducedModel:
    """Put before a model's own class. A family defines `offsets`, `tiles` and the two methods on positions.

    It has the flags and methods of vLLM's interfaces SupportsMRoPE and SupportsMultiModalPruning. As base classes they
    would come before the model's constructor.
    """

    supports_mrope: ClassVar[Literal[True]] = True
    supports_multimodal_pruning: ClassVar[Literal[True]] = True
    supported_video_pruning_methods: ClassVar[tuple[str, ...]] = ("evs",)
    modalities: tuple[str, ...] = ("image",)
    scorer: Scorer | None = None

    def prepare_reduction(self, vllm_config: Any) -> None:
        """At the end of the constructor."""
        served = ServedReduction.of(vllm_config.model_config.hf_config)
        assert served is not None
        self.served = served
        self.is_multimodal_pruning_enabled = False  # the model's own pruning; vLLM's runner has a flag of its own
        if "scorer" in served.reducer.required_inputs():
            self.scorer = load_scorer(served, self.final_norm_weight().device)

    def final_norm_weight(self) -> Tensor:
        """[D]"""
        weight: Tensor = self.language_model.model.norm.weight  # type: ignore[attr-defined]
        return weight.detach()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """vLLM hands over every safetensors file of the folder, that of the scorer too."""
        own = (each for each in weights if not is_of_scorer(each[0]))
        loaded: set[str] = super().load_weights(own)  # type: ignore[misc]
        return loaded

    def offsets(self, modality: str, index: int, number: int, kwargs: Mapping[str, Any]) -> Tensor:
        """[number, 3] long: each token's offset from the position of its image."""
        raise NotImplementedError

    def tiles(self, modality: str, index: int, kwargs: Mapping[str, Any]) -> list[tuple[int, int]] | None:
        """(rows, columns) of each tile or frame; None: no method that looks at the grid is served."""
        return None

    def embed_multimodal(self, **kwargs: Any) -> tuple[Tensor, ...]:
        budgets = {modality: kwargs.pop(field_name(modality), None) for modality in self.modalities}
        given = [modality for modality in self.modalities if budgets[modality] is not None]
        if not given:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        images = iter(super().embed_multimodal(**kwargs))  # type: ignore[misc]
        # vLLM batches the inputs of one modality at a time, so that there is one order only.
        reduced = []
        for modality in given:
            rows = budgets[modality]
            for index, row in enumerate(rows):
                reduced.append(self._reduce(next(images), modality, index, row, kwargs))
        return tuple(reduced)

    def _reduce(self, image: Tensor, modality: str, index: int, row: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """image [N, W] -> [S, W + COLUMNS]. W is a multiple of the model's width D where deepstack features follow the
        embeddings; the selection looks at the embeddings, and the features follow the kept tokens."""
        keep, number = decode_budget(row)
        if len(image) != number:
            raise RuntimeError(f"the encoder gave {len(image)} tokens of an image that has {number} in the prompt")
        weight = self.final_norm_weight()
        width = weight.shape[0]
        reducer = replace(self.served.reducer, keep=keep)
        short, kept = reduce_image(reducer, image[:, :width], weight, self.tiles(modality, index, kwargs), self.scorer)
        if image.shape[1] > width:
            short = torch.cat([short, image[kept, width:]], 1)
        if self.served.renumbers:
            offsets = linear_offsets(len(kept)).to(kept.device)
        else:
            offsets = self.offsets(modality, index, number, kwargs).to(kept.device)[kept]
        return append_offsets(short, offsets)

    def _split_rows(
        self, rows: Sequence[Tensor], input_ids: Any, visual_ids: Sequence[int], num_computed_tokens: int, device: Any
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """What a prefill chunk gets of the encoder's output -> (embeddings [S, W] of each image, the prompt's ids [L],
        which of its positions these rows take [T] long, and their offsets [T, 3])."""
        ids = torch.as_tensor(input_ids, device=device)
        visual = torch.isin(ids, torch.tensor(visual_ids, device=device)).nonzero()[:, 0]
        parts = [split_offsets(each) for each in rows]
        offsets = torch.cat([offset for _, offset in parts]) if parts else ids.new_zeros(0, 3)
        places = visual[visual >= num_computed_tokens][: len(offsets)]
        return [short for short, _ in parts], ids, places, offsets.to(device)
