"""The four lessons: each stage says which weights learn, and from which loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mask import masked
from .model import TrainingBundle
from .recipe import Base, Stage
from .samples import NO_LABEL, Lesson, PackedQuestions, pixels

Loss = Callable[[Lesson], tuple[Tensor, float]]  # what goes down, and an accuracy to be shown
SOMETHING = 4.0  # a patch that shows something counts so often


class Stages:
    """`learning(name)` are the weights of a stage, `loss(name)` what they learn from."""

    def __init__(self, recipe: Base, workshop: TrainingBundle, images: Any) -> None:
        # The CPU's fused kernel is slow in bfloat16 on heads so narrow, its backward above all; plain products are not.
        workshop.model.set_attn_implementation("eager")
        self.recipe, self.workshop, self.images = recipe, workshop, images
        self.inner = workshop.model.model

    def learning(self, name: str) -> list[nn.Parameter]:
        w = self.workshop
        parts: dict[str, list[nn.Module]] = {
            "vision": [self.inner.vision_tower, w.look, w.heads],
            "language": [self.inner.language_model, w.symbols],
            "projector": [self.inner.multi_modal_projector],
        }
        chosen: Iterable[nn.Module] = parts.get(name, [w.model])
        return [weight for part in chosen for weight in part.parameters()]

    def loss(self, name: str, stage: Stage) -> Loss:
        if name == "vision":
            return self._naming
        if name == "projector":
            return self._aligning
        patches = self._symbolic if name == "language" else self._projected
        return lambda lesson: self._answering(lesson.packed, patches(lesson)[lesson.shown], stage.blind_layers)

    def _symbolic(self, lesson: Lesson) -> Tensor:
        return self.workshop.symbolic(lesson.labels)

    def _projected(self, lesson: Lesson) -> Tensor:
        return self.inner.multi_modal_projector(self.workshop.seen(pixels(lesson, self.images)))

    def _naming(self, lesson: Lesson) -> tuple[Tensor, float]:
        """Each patch says what it shows."""
        labels = lesson.labels.flatten(0, 2)
        seen = self.workshop.look(self.workshop.seen(pixels(lesson, self.images))).flatten(0, 1)
        weight = torch.where(labels[:, 0] > 0, SOMETHING, 1.0)
        total, right = seen.new_zeros(()), torch.ones_like(labels[:, 0], dtype=torch.bool)
        for place, name in enumerate(self.workshop.heads):
            said = self.workshop.heads[name](seen)
            losses = F.cross_entropy(said, labels[:, place], reduction="none")
            total = total + (losses * weight).sum() / weight.sum()
            right &= said.argmax(-1) == labels[:, place]
        shown = labels[:, 0] > 0
        return total, float(right[shown].float().mean())

    def _aligning(self, lesson: Lesson) -> tuple[Tensor, float]:
        """The projector gives what the symbols would be; the accuracy is the share of variance it explains."""
        with torch.no_grad():
            wanted, seen = self._symbolic(lesson), self.workshop.seen(pixels(lesson, self.images))
        given = self.inner.multi_modal_projector(seen)
        loss = (given - wanted).square().mean() / wanted.var()
        return loss, 1 - float(loss.detach())

    def _answering(self, packed: PackedQuestions, patches: Tensor, blind: int) -> tuple[Tensor, float]:
        """patches [all that are shown, D], in place of the image tokens. The loss is on answers alone."""
        words = self.workshop.model.get_input_embeddings()
        image = self.workshop.model.config.image_token_id
        there = (packed.ids == image).unsqueeze(-1)
        embeds = words(packed.ids).masked_scatter(there, patches.float())
        open_, covered = (_added(mask) for mask in packed.mask(image))
        language = self.inner.language_model
        with masked(language.layers, blind, covered) if blind else nullcontext():
            hidden = language(
                inputs_embeds=embeds, attention_mask=open_, position_ids=packed.positions, use_cache=False
            ).last_hidden_state
        targets = packed.labels[:, 1:]
        asked = targets != NO_LABEL
        logits, wanted = self.workshop.model.lm_head(hidden[:, :-1][asked]), targets[asked]
        loss = F.cross_entropy(logits, wanted, label_smoothing=self.recipe.smoothing)
        return loss, _whole_answers(packed, asked, logits.argmax(-1) == wanted)


def _added(mask: Tensor) -> Tensor:
    """What is added to attention scores: nothing where one may look."""
    return torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)


def _whole_answers(packed: PackedQuestions, asked: Tensor, right: Tensor) -> float:
    """The share of questions of which every token of the answer is right."""
    group = packed.group[:, 1:] + packed.group.max() * torch.arange(len(packed.ids)).unsqueeze(1)
    number = group[asked]
    wrong = torch.zeros(int(group.max()) + 1).index_add_(0, number, (~right).float())
    there = torch.unique(number)
    return float((wrong[there] == 0).float().mean())
