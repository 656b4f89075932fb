"""How often the model answers right, by kind of question and budget, on questions it has never seen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from dart_train.common.statistics import wilson
from dart_train.common.tables import markdown_table
from dart_train.hooks import attach
from dart_train.reduction import DART
from dart_train.reduction.budget import Keep
from data.shapes import KINDS, Question, Scene, draw, questions, scene

from .recipe import Base

Asked = tuple[Scene, Question]
BUDGET_FULL = 1.0


@dataclass(frozen=True)
class Score:
    """Right answers of a kind at a budget."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked

    def interval(self) -> tuple[float, float]:
        """Wilson's, 95%."""
        return wilson(self.right, self.asked)


Scores = dict[Keep, dict[str, Score]]


def held_out(recipe: Base) -> list[Asked]:
    """`measure.questions` of each kind, from the first scenes of the split on."""
    wanted, found = recipe.measure, Counter[str]()
    asked: list[Asked] = []
    index = 0
    while any(found[kind] < wanted.questions for kind in KINDS):
        one = scene(recipe.pictures.seed, wanted.split, index, recipe.pictures.difficulty)
        for question in questions(one):
            if found[question.kind] < wanted.questions:
                found[question.kind] += 1
                asked.append((one, question))
        index += 1
    return asked


def measure(model: Any, processor: Any, recipe: Base) -> Scores:
    """One entry a budget, in it one a kind. Full tokens means that nothing is attached."""
    asked, wanted = held_out(recipe), recipe.measure
    scores: Scores = {}
    for keep in wanted.budgets:
        reduced = nullcontext() if keep == BUDGET_FULL else attach(model, DART(keep=keep, layer=wanted.layer))
        with reduced:
            said = answers(model, processor, asked, wanted.batch_size, f"keep {keep}")
        scores[keep] = _by_kind(asked, said)
    return scores


@torch.inference_mode()
def answers(model: Any, processor: Any, asked: Sequence[Asked], size: int, name: str) -> list[str]:
    """What the model says to each question, greedily."""
    model.eval()
    said: list[str] = []
    for some in tqdm(list(_batches(asked, size)), desc=name, unit=" batches", mininterval=2):
        batch = processor(
            text=[_prompt(processor, question.question) for _, question in some],
            images=[draw(one) for one, _ in some],
            return_tensors="pt",
            padding=True,
        )
        made = model.generate(**batch, max_new_tokens=8, do_sample=False)
        said += processor.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in said]


def _prompt(processor: Any, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


def _batches(asked: Sequence[Asked], size: int) -> Iterator[Sequence[Asked]]:
    return (asked[start : start + size] for start in range(0, len(asked), size))


def _by_kind(asked: Sequence[Asked], said: Sequence[str]) -> dict[str, Score]:
    right, often = defaultdict[str, int](int), Counter(question.kind for _, question in asked)
    for (_, question), answer in zip(asked, said, strict=True):
        right[question.kind] += answer == question.answer
    return {kind: Score(right[kind], often[kind]) for kind in KINDS} | {
        "all": Score(sum(right.values()), sum(often.values()))
    }


def table(scores: Scores) -> str:
    """A Markdown table: percent right and the 95% interval."""
    keeps = list(scores)
    head = ["kind", "n", *("full" if keep == BUDGET_FULL else f"{100 * keep:.1f}%" for keep in keeps)]
    rows = [
        [kind, str(scores[keeps[0]][kind].asked), *(_cell(scores[keep][kind]) for keep in keeps)]
        for kind in scores[keeps[0]]
    ]
    return markdown_table(head, rows)


def _cell(score: Score) -> str:
    low, high = score.interval()
    return f"{100 * score.share:.1f} ({100 * low:.1f}-{100 * high:.1f})"
