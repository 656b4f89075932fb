"""The model in data/tiny_base is what its card says: small, right where it says so, and hurt where tokens go."""

from __future__ import annotations

import json
from dataclasses import replace
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
LARGEST = 20_000_000


def told() -> dict[str, dict[str, dict[str, int]]]:
    loaded: dict[str, Any] = json.loads((FOLDER / "measured.json").read_text())
    return loaded


@cache
def found() -> Scores:
    """At full tokens and at a ninth, on eight validation questions of each kind."""
    recipe = load_base(ROOT / "recipes" / "tiny_base.yaml")
    few = replace(recipe.measure, split="validation", questions=8, batch_size=48, budgets=(1.0, 0.111))
    model = LlavaForConditionalGeneration.from_pretrained(FOLDER)
    return measure(model, load_processor(str(FOLDER)), replace(recipe, measure=few))


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < LARGEST


def test_it_answers_as_its_card_says() -> None:
    for keep, scores in found().items():
        said, again = told()[str(keep)]["all"], scores["all"]
        share = said["right"] / said["asked"]
        spread = sqrt(share * (1 - share) * (1 / said["asked"] + 1 / again.asked))
        assert abs(again.share - share) < 3.5 * spread, f"keep {keep}"


def test_dropping_tokens_hurts_what_must_be_read() -> None:
    full, ninth = (sum(found()[keep][kind].right for kind in ("number", "word", "plate")) for keep in (1.0, 0.111))
    assert full - ninth >= 4


def test_the_card_shows_what_was_measured() -> None:
    card = (FOLDER / "README.md").read_text()
    for scores in told().values():
        for kind, score in scores.items():
            line = next(line for line in card.splitlines() if line.startswith(f"| {kind} |"))
            assert f" {100 * score['right'] / score['asked']:.1f} (" in line
