"""Right answers among questions, by group of images and kind of question."""

from __future__ import annotations

from dart_train.common.statistics import wilson

Score = tuple[int, int]  # right answers, questions
Scores = dict[str, dict[str, Score]]  # group -> kind -> score


def percent(score: Score) -> str:
    """With its 95% interval."""
    right, asked = score
    low, high = wilson(right, asked)
    return f"{100 * right / asked:.1f} ({100 * low:.1f}-{100 * high:.1f})"
