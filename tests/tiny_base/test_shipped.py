"""The model in data/tiny_base has the accuracy of its card, and dropping tokens costs accuracy."""

from __future__ import annotations

import json
from functools import cache
from math import sqrt
from pathlib import Path
from typing import Any

from transformers import LlavaForConditionalGeneration

from dart_train.models.processors import load_processor
from data.tiny_base.train.measure import Scores, measure
from data.tiny_base.train.recipe import load_base

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "tiny_base"


@cache
def scores_now() -> Scores:
    """At full tokens and at a ninth, on eight validation questions of each kind."""
    recipe = load_base(ROOT / "recipes" / "tiny_base.yaml")
    few = {"split": "validation", "questions": 8, "batch_size": 48, "budgets": (1.0, 0.111)}
    model = LlavaForConditionalGeneration.from_pretrained(FOLDER)
    return measure(
        model, load_processor(str(FOLDER)), recipe.model_copy(update={"measure": recipe.measure.model_copy(update=few)})
    )


def test_accuracy_is_that_of_the_card() -> None:
    measured: dict[str, Any] = json.loads((FOLDER / "measured.json").read_text())
    for keep, scores in scores_now().items():
        card, now = measured[str(keep)]["all"], scores["all"]
        accuracy = card["right"] / card["asked"]
        deviation = sqrt(accuracy * (1 - accuracy) * (1 / card["asked"] + 1 / now.questions))
        assert abs(now.accuracy - accuracy) < 3.5 * deviation, f"keep {keep}"


def test_dropping_tokens_costs_accuracy_in_reading() -> None:
    full, ninth = (sum(scores_now()[keep][kind].right for kind in ("number", "word", "plate")) for keep in (1.0, 0.111))
    assert full - ninth >= 4
