"""The first screen of a report: the best cell's answers against those with all tokens, and questions at random."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dart_train import Learned
from dart_train.config import load_recipe
from dart_train.evaluation.answer_store import from_ranges
from dart_train.evaluation.report.glance import QUESTIONS, glance_of
from dart_train.evaluation.report.regressions import TokenImages
from dart_train.evaluation.results import ComparisonResults
from dart_train.models.families import Box
from dart_train.visualization.draw import SCORED
from dart_train.visualization.overlay import OverlayPatch, draw_overlay
from tests.evaluation import scene


def test_outcomes_sum_to_all_questions_and_those_shown_have_images(results: ComparisonResults) -> None:
    found = glance_of(results, TokenImages(results))
    assert found is not None and found.total == scene.NUMBER
    assert len(found.questions) == QUESTIONS
    assert {question.kind for question in found.questions[:2]} == set(scene.KINDS)
    for question in found.questions:
        assert question.panels[0].title == "all tokens" and len(question.panels) == 4
        assert all(panel.image is not None for panel in question.panels)
    again = glance_of(results, TokenImages(results))
    assert again is not None and [each.text for each in again.questions] == [each.text for each in found.questions]


def test_tokens_of_the_scorer_are_recorded_apart_from_those_of_dart(tmp_path: Path) -> None:
    recipe = load_recipe(
        scene.make(tmp_path / "made"), ["compare.methods=[{method: learned, share: 0.25}]", "compare.budgets=[8]"]
    )
    scene.compare_without_report(recipe)
    reduced = [line for line in scene.lines(tmp_path / "made" / "out") if line["method"] == "learned" and line["kept"]]
    assert len(reduced) == scene.NUMBER - 1
    for line in reduced:
        kept, scored = set(from_ranges(line["kept_tokens"])), set(from_ranges(line["scored_tokens"]))
        assert len(kept) == 8 and len(scored) == round(Learned(share=0.25).share * 8) and scored < kept


@pytest.mark.parametrize("scored", [True, False])
def test_a_token_of_the_scorer_has_a_frame_of_its_own_colour(scored: bool) -> None:
    patches = [OverlayPatch(Box(0, 0, 16, 16), True, scored=scored), OverlayPatch(Box(16, 0, 32, 16), False)]
    page = draw_overlay(Image.new("RGB", (32, 16), "blue"), patches, 64)
    assert (page.getpixel((1, 1)) == SCORED) == scored
