"""The model of a recipe as its training holds it: what trains, in which dtypes; and a smaller copy, to be timed."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from ..common.distributed import RankInfo
from ..config import Recipe
from ..profiling.device import free_bytes
from ..profiling.flops import FakeLayer, QuadraticCost, layer_flops, one_layer_config
from ..training.trainable import (
    add_new_scorers,
    choose_parameters,
    resolve_attention,
    trainable_meta_model,
    upcast_trainable_to_fp32,
)

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_USABLE = 0.7  # of the free memory
_COPIES = 4  # of a weight that trains: itself, its gradient, two moments


@dataclass(frozen=True)
class TrainingSetup:
    """A recipe on a number of ranks. deepspeed: all weights are cast to the dtype of the computation; without it the
    weights that train stay in float32 and autocast computes."""

    recipe: Recipe
    ranks: int
    deepspeed: bool

    @classmethod
    def of(cls, recipe: Recipe, ranks: int | None = None) -> TrainingSetup:
        """ranks: by default those of the launcher that started this process; more than one means DeepSpeed, unless
        the recipe has another backend."""
        here = RankInfo.read()
        several = ranks is not None and ranks > 1
        train = recipe.train
        deepspeed = several or here.uses_deepspeed(train.zero_stage, train.requires_deepspeed)
        deepspeed = deepspeed and train.backend == "deepspeed"
        return cls(recipe, ranks or here.world, deepspeed)

    @property
    def sharded(self) -> int:
        """What the ranks share, as a ZeRO stage; FSDP2 shares what stage 3 does."""
        if self.recipe.train.backend == "fsdp2" and self.ranks > 1:
            return 3
        return self.recipe.train.zero_stage if self.deepspeed else 0

    @property
    def has_reference(self) -> bool:
        """Whether every micro-batch also runs forward with the weights of the start."""
        return self.recipe.train.method == "dpo"

    @property
    def copies_reference(self) -> bool:
        """Whether these weights are a second model; with adapters they are the model without them."""
        return self.has_reference and "lora" not in self.modes.values()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        return _HALVES.get(self.recipe.train.precision, torch.float32)

    @property
    def autocasts(self) -> bool:
        return not self.deepspeed and self.dtype in _HALVES.values()

    def autocast(self, device: str) -> AbstractContextManager[Any]:
        return torch.autocast(device, self.dtype, enabled=self.autocasts)

    @property
    def modes(self) -> dict[str, str]:
        """Part -> frozen, lora or full."""
        return {name: part.mode for name, part in self.recipe.parts.named().items()}

    def meta_model(self) -> Any:
        """The complete model, every weight with its size and dtype, none of them in memory."""
        return self._prepare(trainable_meta_model(self.recipe).to(self._loaded_dtype))

    def build_one_layer(
        self, config: Any, device: torch.device | str, kernel: str | None = None, layer: int | None = None
    ) -> Any:
        """The model with one decoder layer, by default the first with attention, and random weights (none on `meta`),
        prepared for training."""
        kernel = kernel or resolve_attention(self.recipe.model)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(
                one_layer_config(config, layer), dtype=self._loaded_dtype, attn_implementation=kernel
            )
            model = choose_parameters(model, self.recipe.parts)
            add_new_scorers(model, self.recipe)
            return self._prepare(model)

    def fake_layer(self, config: Any, device: str) -> FakeLayer:
        return FakeLayer(self.build_one_layer(config, "meta"), device, self.dtype, self.autocasts)

    @property
    def _loaded_dtype(self) -> torch.dtype:
        """The dtype of frozen weights."""
        return self.dtype if self.deepspeed else _DTYPES.get(self.recipe.model.dtype, self.dtype)

    def _prepare(self, model: Any) -> Any:
        if self.deepspeed:
            return model.to(self.dtype).train()
        upcast_trainable_to_fp32(model)
        return model.train()


def fit_to_device(config: Any, setup: TrainingSetup, device: torch.device) -> tuple[Any, int]:
    """(config, factor): the config itself, or one whose decoder is narrower by the factor, so that a model with one
    layer fits into the device's free memory."""
    factor, room = 1, free_bytes(device) * _USABLE
    while one_layer_bytes(narrow(config, factor), setup) > room:
        factor *= 2
        if config.get_text_config().num_attention_heads < 2 * factor:
            raise ValueError(
                f"one decoder layer with vision tower and head needs more than the {room / 2**30:.1f} GiB free on "
                f"{device}; plan with --no-timing, or on another device"
            )
    return narrow(config, factor), factor


def one_layer_bytes(config: Any, setup: TrainingSetup) -> int:
    weights = setup.build_one_layer(config, "meta").parameters()
    return sum(w.numel() * w.element_size() * (_COPIES if w.requires_grad else 1) for w in weights)


def narrow(config: Any, factor: int) -> Any:
    """Fewer heads of the same size, and a width in proportion."""
    if factor == 1:
        return config
    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    text.num_key_value_heads = max(1, text.num_key_value_heads // factor)
    for name in ("num_attention_heads", "hidden_size", "intermediate_size"):
        setattr(text, name, getattr(text, name) // factor)
    return small


def scale_by_flops(measured: QuadraticCost, config: Any, small: Any, setup: TrainingSetup) -> QuadraticCost:
    """The cost of a full layer from that of a narrow one, in proportion to their FLOPs."""
    full, narrowed = (
        sum(layer_flops(setup.build_one_layer(each, "meta", "eager")), QuadraticCost()) for each in (config, small)
    )
    return measured.scaled(full.token / narrowed.token, full.pair / narrowed.pair)
