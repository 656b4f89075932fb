"""The model of a recipe as its training would hold it: which weights train, and in which dtype each lies."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from ..common.distributed import RankInfo
from ..config import Recipe
from ..profiling.flops import FakeLayer, one_layer_config
from ..training.trainable import attention, choose_parameters, skeleton, upcast_trainable_to_fp32

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Setup:
    """A recipe on so many ranks. deepspeed: it casts all weights; without it those that train stay in float32, and
    autocast computes."""

    recipe: Recipe
    ranks: int
    deepspeed: bool

    @classmethod
    def of(cls, recipe: Recipe, ranks: int | None = None) -> Setup:
        """Where `ranks` is not given, those of the launcher that started this process; several mean DeepSpeed."""
        here = RankInfo.read()
        several = ranks is not None and ranks > 1
        train = recipe.train
        deepspeed = several or here.uses_deepspeed(train.zero_stage, train.requires_deepspeed)
        return cls(recipe, ranks or here.world, deepspeed)

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation."""
        return _HALVES.get(self.recipe.train.precision, torch.float32)

    @property
    def loaded(self) -> torch.dtype:
        """Of frozen weights."""
        return self.dtype if self.deepspeed else _DTYPES.get(self.recipe.model.dtype, self.dtype)

    def build(self, config: Any, device: torch.device | str, kernel: str | None = None) -> Any:
        """Random weights on a device, none on `meta`; ready to train."""
        kernel = kernel or attention(self.recipe.model)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(
                copy.deepcopy(config), dtype=self.loaded, attn_implementation=kernel
            )
            return self._ready(choose_parameters(model, self.recipe.parts))

    def one_layer(self, config: Any, kernel: str = "eager") -> Any:
        """With one decoder layer, on `meta`."""
        return self.build(one_layer_config(config), "meta", kernel)

    def fake_layer(self, config: Any, device: str) -> FakeLayer:
        return FakeLayer(self.build(one_layer_config(config), "meta"), device, self.dtype, self._autocasts)

    def skeleton(self) -> Any:
        """The whole model, every weight with its size and dtype, none of them in memory."""
        return self._ready(skeleton(self.recipe).to(self.loaded))

    def _ready(self, model: Any) -> Any:
        if self.deepspeed:
            return model.to(self.dtype).train()
        upcast_trainable_to_fp32(model)
        return model.train()

    @property
    def _autocasts(self) -> bool:
        return not self.deepspeed and self.dtype in _HALVES.values()

    def computing(self, device: str) -> AbstractContextManager[Any]:
        return torch.autocast(device, self.dtype, enabled=self._autocasts)
