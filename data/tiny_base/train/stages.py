"""The four stages: the weights that each one trains, and its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mask import additive, attention_masks, mask_first_layers
from .model import TrainingBundle
from .recipe import BaseRecipe, Stage
from .samples import IGNORED, PackedQuestions, SceneBatch, pixels

StageLoss = Callable[[SceneBatch], tuple[Tensor, float]]  # the loss, and an accuracy for the progress bar
ITEM_WEIGHT = 4.0  # weight in the loss of a patch that shows an item; others have 1


class StageLosses:
    """`trained(name)` are the weights of a stage, `loss(name)` is its loss."""

    def __init__(self, recipe: BaseRecipe, bundle: TrainingBundle, image_processor: Any) -> None:
        # On the CPU the fused kernel is slow in bfloat16 for such narrow heads, its backward above all.
        bundle.model.set_attn_implementation("eager")
        self.recipe, self.bundle, self.image_processor = recipe, bundle, image_processor
        self.inner = bundle.model.model

    def trained(self, name: str) -> list[nn.Parameter]:
        bundle = self.bundle
        parts: dict[str, list[nn.Module]] = {
            "vision": [self.inner.vision_tower, bundle.patch_norm, bundle.heads],
            "language": [self.inner.language_model, bundle.symbols],
            "projector": [self.inner.multi_modal_projector],
        }
        chosen: Iterable[nn.Module] = parts.get(name, [bundle.model])
        return [weight for part in chosen for weight in part.parameters()]

    def loss(self, name: str, stage: Stage) -> StageLoss:
        if name == "vision":
            return self.patch_label_loss
        if name == "projector":
            return self.alignment_loss
        patches = self._symbolic if name == "language" else self._projected
        return lambda batch: self.answer_loss(batch.packed, patches(batch)[batch.visible], stage.blind_layers)

    def patch_label_loss(self, batch: SceneBatch) -> tuple[Tensor, float]:
        """The vision tower classifies each patch."""
        labels = batch.labels.flatten(0, 2)
        features = self.bundle.patch_norm(self._features(batch)).flatten(0, 1)
        weight = torch.where(labels[:, 0] > 0, ITEM_WEIGHT, 1.0)
        total, right = features.new_zeros(()), torch.ones_like(labels[:, 0], dtype=torch.bool)
        for column, name in enumerate(self.bundle.heads):
            logits = self.bundle.heads[name](features)
            losses = F.cross_entropy(logits, labels[:, column], reduction="none")
            total = total + (losses * weight).sum() / weight.sum()
            right &= logits.argmax(-1) == labels[:, column]
        return total, float(right[labels[:, 0] > 0].float().mean())

    def alignment_loss(self, batch: SceneBatch) -> tuple[Tensor, float]:
        """The projector reproduces the symbolic patches. The accuracy is the share of variance that it explains."""
        with torch.no_grad():
            target, features = self._symbolic(batch), self._features(batch)
        projected = self.inner.multi_modal_projector(features)
        loss = (projected - target).square().mean() / target.var()
        return loss, 1 - float(loss.detach())

    def answer_loss(self, packed: PackedQuestions, patches: Tensor, blind_layers: int) -> tuple[Tensor, float]:
        """patches: [visible patches of the batch, D], in place of the image tokens. Only answers are supervised."""
        embeddings = self.bundle.model.get_input_embeddings()
        image = self.bundle.model.config.image_token_id
        is_image = (packed.ids == image).unsqueeze(-1)
        embeds = embeddings(packed.ids).masked_scatter(is_image, patches.float())
        mask, without_image = (additive(mask) for mask in attention_masks(packed, image))
        language = self.inner.language_model
        with mask_first_layers(language.layers, blind_layers, without_image) if blind_layers else nullcontext():
            hidden = language(
                inputs_embeds=embeds, attention_mask=mask, position_ids=packed.positions, use_cache=False
            ).last_hidden_state
        targets = packed.labels[:, 1:]
        supervised = targets != IGNORED
        logits, labels = self.bundle.model.lm_head(hidden[:, :-1][supervised]), targets[supervised]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.smoothing)
        return loss, _answer_accuracy(packed, supervised, logits.argmax(-1) == labels)

    def _symbolic(self, batch: SceneBatch) -> Tensor:
        return self.bundle.symbolic_patches(batch.labels)

    def _projected(self, batch: SceneBatch) -> Tensor:
        return self.inner.multi_modal_projector(self._features(batch))

    def _features(self, batch: SceneBatch) -> Tensor:
        return self.bundle.patch_features(pixels(batch, self.image_processor))


def _answer_accuracy(packed: PackedQuestions, supervised: Tensor, right: Tensor) -> float:
    """The share of questions whose answer is right in every token."""
    group = packed.group[:, 1:] + packed.group.max() * torch.arange(len(packed.ids)).unsqueeze(1)
    question = group[supervised]
    wrong = torch.zeros(int(group.max()) + 1).index_add_(0, question, (~right).float())
    return float((wrong[torch.unique(question)] == 0).float().mean())
