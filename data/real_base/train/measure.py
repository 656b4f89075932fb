"""Exact match of the finished model at full tokens, by kind, on seen things, unseen things and the other style.

An answer counts if every one of its tokens, and the end of the turn, is the most likely one after the tokens before it:
then greedy decoding gives exactly this answer. So all questions of an image are evaluated in one forward. Reduced
tokens are evaluated with `python -m dart_train compare recipes/real_compare.yaml`, which generates.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data.things import KINDS, STYLES, Question, draw, questions, scene

from ..build import assembled, with_trained
from .card import write_card
from .features import tower_features
from .model import additive
from .recipe import RealRecipe
from .rows import IGNORED, RowBatch, RowMaker
from .scores import Score, Scores


def groups(split: str) -> dict[str, tuple[str, str]]:
    """Name -> the split and the style of its images."""
    return {"seen": (split, STYLES[0]), "unseen": ("unseen", STYLES[0]), "other style": (split, STYLES[1])}


def evaluate(recipe: RealRecipe) -> None:
    """Build the model as users do, evaluate it, and write measured.json and the card."""
    model, processor = assembled(Path(recipe.parts_dir), recipe.pictures.feature_layers, recipe.pictures.size)
    model = with_trained(model, Path(recipe.output_dir)).to(getattr(torch, recipe.precision))
    scores = measure(model, processor, recipe) | {"without the image": most_frequent(recipe)}
    (Path(recipe.output_dir) / "measured.json").write_text(json.dumps(scores, indent=1) + "\n")
    print(write_card(recipe, scores))


def measure(model: Any, processor: Any, recipe: RealRecipe) -> Scores:
    rows = RowMaker(processor.tokenizer, model.config.vision_config.patch_size, model.config.image_token_id)
    found: Scores = {}
    for group, (split, style) in groups(recipe.measure.split).items():
        right: dict[str, list[bool]] = defaultdict(list)
        for index in tqdm(range(recipe.measure.images), desc=group, unit=" images", mininterval=5):
            one = scene(recipe.pictures.seed, split, index)
            asked = questions(one, KINDS, each=recipe.measure.each)
            answered = right_answers(model, processor, rows, draw(one, style), asked)
            for question, is_right in zip(asked, answered, strict=True):
                right[question.kind].append(is_right)
        found[group] = _with_total({kind: (sum(right[kind]), len(right[kind])) for kind in KINDS if right[kind]})
    return found


def most_frequent(recipe: RealRecipe) -> dict[str, Score]:
    """What a model reaches that looks at no image: each kind's most frequent answer to all questions on seen things."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(recipe.measure.images):
        one = scene(recipe.pictures.seed, recipe.measure.split, index)
        for question in questions(one, KINDS, each=recipe.measure.each):
            answers[question.kind].update([question.answer])
    return _with_total({kind: (max(answers[kind].values()), answers[kind].total()) for kind in KINDS if answers[kind]})


def _with_total(scores: dict[str, Score]) -> dict[str, Score]:
    return {**scores, "all": (sum(n for n, _ in scores.values()), sum(n for _, n in scores.values()))}


@torch.inference_mode()
def right_answers(model: Any, processor: Any, rows: RowMaker, image: Any, asked: list[Question]) -> list[bool]:
    """For each question about the image whether greedy decoding gives its answer."""
    features = tower_features(model, processor, [image])
    visible = torch.ones(features.shape[:2], dtype=torch.bool)
    batch = rows.pack([[(one.question, one.answer) for one in asked]], visible, [0])
    hits, group = _token_hits(model, batch, features)
    wrong = torch.zeros(len(asked) + 1).index_add_(0, group, (~hits).float())
    return [bool(count == 0) for count in wrong[1:]]


def _token_hits(model: Any, batch: RowBatch, features: Tensor) -> tuple[Tensor, Tensor]:
    """For each supervised token: is it the most likely one, and the number of its question."""
    patches = model.model.multi_modal_projector(features.to(model.dtype)).flatten(0, 1)
    embeds = model.get_input_embeddings()(batch.ids)
    embeds = embeds.masked_scatter((batch.ids == model.config.image_token_id).unsqueeze(-1), patches)
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=additive(batch.mask(), embeds.dtype),
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    supervised = batch.labels[:, 1:] != IGNORED
    logits = F.linear(hidden[:, :-1][supervised], model.lm_head.weight)
    return logits.argmax(-1) == batch.labels[:, 1:][supervised], batch.group[:, 1:][supervised]
