"""The claims about the base of pretrained parts: data/results/real/README.md has them in words.

They were written before any question that they are evaluated on was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dart_train.common.statistics import PairedDifference

from .answers import Cell

NAMES, TEXTS = "names", "texts"  # the sets of recipes/real_compare.yaml and recipes/real_reading.yaml
NAMED = 0.8  # of seen things, at full tokens


@dataclass(frozen=True)
class Claim:
    """`cell` less `against`: the difference, or its 95% interval, is where `holds` says."""

    text: str
    cell: Cell
    against: Cell
    holds: Callable[[PairedDifference], bool]


def above(found: PairedDifference) -> bool:
    return found.low > 0


def below(found: PairedDifference) -> bool:
    return found.value < 0


def loses_at_most(points: float) -> Callable[[PairedDifference], bool]:
    return lambda found: found.value >= -points / 100


CLAIMS = (
    # choices that are not trained
    Claim(
        "names: DART above random at 22.2%",
        Cell(NAMES, "base", "dart", "0.222"), Cell(NAMES, "base", "random", "0.222"), above,
    ),
    Claim(
        "names: FastV below random at 11.1%",
        Cell(NAMES, "base", "fastv", "0.111"), Cell(NAMES, "base", "random", "0.111"), below,
    ),
    Claim(
        "names: DART at K = 8 no worse than at K = 2, 11.1%",
        Cell(NAMES, "base", "dart_8", "0.111"), Cell(NAMES, "base", "dart", "0.111"), loses_at_most(0),
    ),
    Claim(
        "texts: pooling below DART at 22.2%",
        Cell(TEXTS, "base", "pooling", "0.222"), Cell(TEXTS, "base", "dart", "0.222"), below,
    ),
    # the trained scorer, on the base
    Claim(
        "names: scorer above DART at 11.1%",
        Cell(NAMES, "scorer_2", "learned", "0.111"), Cell(NAMES, "base", "dart", "0.111"), above,
    ),
    Claim(
        "texts: scorer above DART at 11.1%",
        Cell(TEXTS, "scorer_2", "learned", "0.111"), Cell(TEXTS, "base", "dart", "0.111"), above,
    ),
    Claim(
        "texts: scorer at 22.2% loses at most 5 points",
        Cell(TEXTS, "scorer_2", "learned", "0.222"), Cell(TEXTS, "base"), loses_at_most(5),
    ),
    Claim(
        "texts: scorer at 11.1% loses at most 15 points",
        Cell(TEXTS, "scorer_2", "learned", "0.111"), Cell(TEXTS, "base"), loses_at_most(15),
    ),
    # models that are adapted to a choice
    Claim(
        "names: model adapted to DART above the base, both with DART at 11.1%",
        Cell(NAMES, "adapted", "dart", "0.111"), Cell(NAMES, "base", "dart", "0.111"), above,
    ),
    Claim(
        "names: model adapted to DART above the control, both with DART at 11.1%",
        Cell(NAMES, "adapted", "dart", "0.111"), Cell(NAMES, "control", "dart", "0.111"), above,
    ),
    Claim(
        "texts: model adapted to DART above the control, both with DART at 11.1%",
        Cell(TEXTS, "adapted", "dart", "0.111"), Cell(TEXTS, "control", "dart", "0.111"), above,
    ),
    Claim(
        "names: model adapted to DART loses at most 5 points against the control, both at full tokens",
        Cell(NAMES, "adapted"), Cell(NAMES, "control"), loses_at_most(5),
    ),
    Claim(
        "names: model adapted to the scorer's choice above the base with it, 11.1%",
        Cell(NAMES, "learned", "learned", "0.111"), Cell(NAMES, "scorer_2", "learned", "0.111"), above,
    ),
    Claim(
        "names: model adapted to the scorer's choice loses at most 10 points at 22.2% against the control at full",
        Cell(NAMES, "learned", "learned", "0.222"), Cell(NAMES, "control"), loses_at_most(10),
    ),
    Claim(
        "texts: model adapted to the scorer's choice loses at most 5 points at 22.2% against the control at full",
        Cell(TEXTS, "learned", "learned", "0.222"), Cell(TEXTS, "control"), loses_at_most(5),
    ),
)  # fmt: skip
