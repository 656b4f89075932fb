"""The recipe of a base model: what is built, in which stages it learns, how it is judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dart_train.config.errors import Problem, RecipeError, expected
from dart_train.config.overrides import override
from dart_train.config.ranges import Count, Fraction, Keep, NotNegative, Positive, Text, Whole
from dart_train.config.reader import Reader
from dart_train.config.text import parse


@dataclass(frozen=True)
class Pictures:
    difficulty: Literal["tiny", "small", "medium", "hard"] = "tiny"  # of data/shapes.py; its size is the tower's
    seed: Whole = 0  # of the scenes


@dataclass(frozen=True)
class Vision:
    patch: Count = 8  # pixels to a side
    width: Count = 96
    layers: Count = 3
    heads: Count = 4
    mlp: Count = 192


@dataclass(frozen=True)
class Language:
    width: Count = 128
    layers: Count = 8
    heads: Count = 4
    mlp: Count = 320
    positions: Count = 1024  # the longest sequence


@dataclass(frozen=True)
class Stage:
    steps: Count
    batch_size: Count  # pictures
    learning_rate: Positive
    warmup: Whole = 50  # steps
    questions: Count = 7  # a picture, at most; where no question is asked it says nothing
    conversations: Fraction = 0.0  # share of the lessons in which questions follow one another, not stand alone
    background: bool = True  # language: false leaves patches that show nothing out, gaps where they would be
    blind_layers: Whole = 0  # in so many first layers text does not look at the picture
    weight_decay: NotNegative = 0.01
    max_grad_norm: Positive = 1.0


@dataclass(frozen=True)
class Stages:
    vision: Stage  # the tower alone, on a label for every patch
    language: Stage  # the language model alone, on symbols in place of patches
    projector: Stage  # from what the tower sees to the symbols, both sides frozen
    joint: Stage  # everything, on pictures

    def named(self) -> dict[str, Stage]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Measure:
    split: Literal["validation", "test"] = "test"
    questions: Count = 600  # of each kind
    batch_size: Count = 100
    budgets: tuple[Keep, ...] = (1.0, 0.5, 0.222, 0.111)
    layer: Count = 2


@dataclass(frozen=True)
class Base:
    stages: Stages
    pictures: Pictures = field(default_factory=Pictures)
    vision: Vision = field(default_factory=Vision)
    language: Language = field(default_factory=Language)
    measure: Measure = field(default_factory=Measure)
    output_dir: Text = "runs/tiny_base/model"  # the finished model
    work_dir: Text = "runs/tiny_base/stages"  # each stage as it ends; a run begun anew goes on from there
    save_steps: Count = 100  # also within a stage
    precision: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights are float32
    smoothing: Fraction = 0.0  # of labels
    seed: Whole = 0  # of the weights


def load_base(path: str | Path, overrides: Iterable[str] = ()) -> Base:
    """The recipe in a YAML file, `overrides` applied. Raises RecipeError with all problems."""
    try:
        data = parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Problem("", f"cannot be read: {error}")], str(path)) from error
    if not isinstance(data, dict):
        raise RecipeError([expected("", data, "a mapping with sections such as vision and stages")], str(path))
    problems = override(data, overrides)
    base = Reader(Base, problems).read(Base, data)
    if not problems:
        problems.extend(_impossible(base))
    if problems:
        raise RecipeError(problems, str(path))
    return base


def _impossible(base: Base) -> Iterator[Problem]:
    for name in ("vision", "language"):
        part = getattr(base, name)
        if part.width % part.heads:
            yield expected(f"{name}.heads", part.heads, f"a divisor of {name}.width = {part.width}")
    for name, stage in base.stages.named().items():
        if stage.blind_layers >= base.language.layers:
            wanted = f"fewer than language.layers = {base.language.layers}"
            yield expected(f"stages.{name}.blind_layers", stage.blind_layers, wanted)
