"""The accuracy of the model, by kind of question and token budget, on scenes that are in no training split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from dart_train.common.statistics import wilson
from dart_train.common.tables import markdown_table
from dart_train.hooks import attach
from dart_train.models.prompts import build_inputs, user_message
from dart_train.reduction import DART
from dart_train.reduction.budget import Keep
from data.shapes import KINDS, Question, Scene, draw, questions, scene

from .recipe import BaseRecipe

SceneQuestion = tuple[Scene, Question]
FULL_BUDGET = 1.0


@dataclass(frozen=True)
class Score:
    """Right answers to the questions of one kind at one budget."""

    right: int
    questions: int

    @property
    def accuracy(self) -> float:
        return self.right / self.questions

    def interval(self) -> tuple[float, float]:
        """Wilson's, 95%."""
        return wilson(self.right, self.questions)


Scores = dict[Keep, dict[str, Score]]  # budget -> kind -> score


def held_out_questions(recipe: BaseRecipe) -> list[SceneQuestion]:
    """`measure.questions` of each kind, from the first scenes of the split."""
    settings, counts = recipe.measure, Counter[str]()
    found: list[SceneQuestion] = []
    index = 0
    while any(counts[kind] < settings.questions for kind in KINDS):
        one = scene(recipe.pictures.seed, settings.split, index, recipe.pictures.difficulty)
        for question in questions(one):
            if counts[question.kind] < settings.questions:
                counts[question.kind] += 1
                found.append((one, question))
        index += 1
    return found


def measure(model: Any, processor: Any, recipe: BaseRecipe) -> Scores:
    """The scores at each budget. At the full budget nothing is attached."""
    evaluated, settings = held_out_questions(recipe), recipe.measure
    scores: Scores = {}
    for keep in settings.budgets:
        full = keep == FULL_BUDGET
        with nullcontext() if full else attach(model, DART(keep=keep, layer=settings.layer)):
            answers = generate_answers(model, processor, evaluated, settings.batch_size, f"keep {keep}")
        scores[keep] = _by_kind(evaluated, answers)
    return scores


@torch.inference_mode()
def generate_answers(
    model: Any, processor: Any, evaluated: Sequence[SceneQuestion], batch_size: int, description: str
) -> list[str]:
    """The greedy answer to each question."""
    model.eval()
    answers: list[str] = []
    for start in tqdm(range(0, len(evaluated), batch_size), desc=description, unit=" batches", mininterval=2):
        some = evaluated[start : start + batch_size]
        prompts = [[user_message(question.question, [draw(one)])] for one, question in some]
        batch = build_inputs(processor, prompts)
        output = model.generate(**batch, max_new_tokens=8, do_sample=False)
        answers += processor.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in answers]


def _by_kind(evaluated: Sequence[SceneQuestion], answers: Sequence[str]) -> dict[str, Score]:
    right, counts = defaultdict[str, int](int), Counter(question.kind for _, question in evaluated)
    for (_, question), answer in zip(evaluated, answers, strict=True):
        right[question.kind] += answer == question.answer
    scores = {kind: Score(right[kind], counts[kind]) for kind in KINDS}
    return {**scores, "all": Score(sum(right.values()), sum(counts.values()))}


def score_table(scores: Scores) -> str:
    """A Markdown table: percent right and the 95% interval."""
    budgets = list(scores)
    header = ["kind", "n", *("full" if keep == FULL_BUDGET else f"{100 * keep:.1f}%" for keep in budgets)]
    rows = [
        [kind, str(score.questions), *(_cell(scores[keep][kind]) for keep in budgets)]
        for kind, score in scores[budgets[0]].items()
    ]
    return markdown_table(header, rows)


def _cell(score: Score) -> str:
    low, high = score.interval()
    return f"{100 * score.accuracy:.1f} ({100 * low:.1f}-{100 * high:.1f})"
