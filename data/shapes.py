"""A visual question set drawn on the spot: coloured shapes, and small plates with numbers and words.

    python data/shapes.py --out DIR --train 2000 --validation 200 --test 500 --difficulty tiny
    python data/shapes.py --blind --difficulty tiny       # what guessing without looking scores

Importable as `data.shapes`: `scene`, `draw`, `questions`, `patch_labels`, `symbols`, `vocabulary`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: find `data.scenes` in the checkout around it
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.scenes.blind import blind, table
from data.scenes.drawing import draw
from data.scenes.levels import LEVELS
from data.scenes.questions import KINDS, Question, questions
from data.scenes.scene import Item, Scene, describe, fingerprint, scene
from data.scenes.views import LABELS, patch_labels, split_words, symbol_vocabulary, symbols, vocabulary
from data.scenes.writing import FORMATS, Settings, write

__all__ = [
    "KINDS", "LABELS", "LEVELS", "Item", "Question", "Scene", "Settings", "blind", "describe", "draw",
    "fingerprint", "patch_labels", "questions", "scene", "split_words", "symbol_vocabulary", "symbols",
    "vocabulary", "write",
]  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="Draw a visual question set of shapes, numbers and words.")
    made.add_argument("--out", type=Path, help="folder to write to; a finished set there is left alone")
    for split in ("train", "validation", "test"):
        made.add_argument(f"--{split}", type=int, default=0, metavar="N", help=f"pictures in {split}")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--difficulty", choices=list(LEVELS), default="tiny")
    made.add_argument("--format", choices=FORMATS, default="llava")
    made.add_argument("--group", action="store_true", help="a conversation a picture, not a row a question")
    made.add_argument("--kinds", default=",".join(KINDS), help="question kinds, separated by commas")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    made.add_argument("--blind", action="store_true", help="write nothing; print blind baselines per kind")
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.blind:
        print(table(blind(options.difficulty, options.seed)))
        return 0
    try:
        if options.out is None:
            raise ValueError("no folder given: say where to write with --out DIR")
        if options.workers < 1:
            raise ValueError(f"--workers {options.workers} given, at least 1 expected")
        kinds = tuple(kind for kind in options.kinds.split(",") if kind)
        sizes = (options.train, options.validation, options.test)
        settings = Settings(*sizes, options.seed, options.difficulty, options.format, options.group, kinds)
        summary = write(settings, options.out, options.workers)
    except ValueError as error:
        print(f"shapes.py: {error}", file=sys.stderr)
        return 2
    for split, made in summary["splits"].items():
        print(f"{split}: {made['pictures']} pictures, {sum(made['questions'].values())} questions")
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
