"""The weights that are trained: the projector on standardised features, and an adapter of the language model."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from .recipe import RealRecipe
from .rows import IGNORED, RowBatch


class TrainedParts(nn.Module):
    """projector: in float32, on standardised features. language: the language model with its adapter."""

    def __init__(self, recipe: RealRecipe, model: Any) -> None:
        super().__init__()
        self.projector = copy.deepcopy(model.model.multi_modal_projector).float()
        model.set_attn_implementation(
            "eager"
        )  # on the CPU faster in bfloat16 than the fused kernel, its backward above all
        self.language_model = add_adapter(recipe, model.model.language_model)
        self.embeddings = model.get_input_embeddings()
        self.image_token = model.config.image_token_id
        self.precision = getattr(torch, recipe.precision)

    def adapter(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.language_model.named_parameters() if "lora_" in name}

    def trained_state(self) -> dict[str, Tensor]:
        state = {f"projector.{name}": weight for name, weight in self.projector.state_dict().items()}
        return state | {f"adapter.{name}": weight.detach() for name, weight in self.adapter().items()}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        self.projector.load_state_dict(
            {name.removeprefix("projector."): value for name, value in state.items() if name.startswith("projector.")}
        )
        with torch.no_grad():
            for name, weight in self.adapter().items():
                weight.copy_(state[f"adapter.{name}"])

    def answer_loss(self, batch: RowBatch, features: Tensor) -> tuple[Tensor, Tensor]:
        """The loss over the answers, and for each supervised token whether it is right.

        features: [B, patches, width], standardised."""
        patches = self.projector(features[batch.visible]).to(self.precision)
        embeds = self.embeddings(batch.ids)
        embeds = embeds.masked_scatter((batch.ids == self.image_token).unsqueeze(-1), patches)
        hidden = self.language_model(
            inputs_embeds=embeds,
            attention_mask=additive(batch.mask(), embeds.dtype),
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORED
        logits = F.linear(hidden[:, :-1][supervised], self.embeddings.weight).float()
        labels = targets[supervised]
        return F.cross_entropy(logits, labels), logits.argmax(-1) == labels


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as a term added to attention scores: 0 where it is True, the smallest number elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def add_adapter(recipe: RealRecipe, language_model: Any) -> Any:
    settings = LoraConfig(
        r=recipe.adapter.rank,
        lora_alpha=recipe.adapter.alpha,
        lora_dropout=recipe.adapter.dropout,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
    return get_peft_model(language_model.to(getattr(torch, recipe.precision)), settings)


def folded(projector: nn.Module, mean: Tensor, deviation: Tensor) -> dict[str, Tensor]:
    """The projector's weights for features that are not standardised."""
    state = {name: weight.detach().clone() for name, weight in projector.state_dict().items()}
    state["linear_1.weight"] = state["linear_1.weight"] / deviation
    state["linear_1.bias"] = state["linear_1.bias"] - state["linear_1.weight"] @ mean
    return state
