"""A visual question set that is drawn locally: coloured shapes, and small plates with numbers and words.

    python data/shapes.py --out DIR --train 2000 --validation 200 --test 500 --difficulty tiny
    python data/shapes.py --blind --difficulty tiny       # the accuracy of guessing without the image

Importable as `data.shapes`: `scene`, `draw`, `questions`, `patch_labels`, `symbols`, `vocabulary`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: `data.scenes` is in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.scenes.blind_baseline import baseline_table, blind_baselines
from data.scenes.difficulty import LEVELS
from data.scenes.drawing import draw
from data.scenes.labels import LABELS, patch_labels, split_words, symbol_vocabulary, symbols, vocabulary
from data.scenes.questions import KINDS, Question, questions
from data.scenes.scene import Item, Scene, describe, fingerprint, scene
from data.scenes.writer import FORMATS, ShapesSettings, write

__all__ = [
    "KINDS", "LABELS", "LEVELS", "Item", "Question", "Scene", "ShapesSettings", "blind_baselines", "describe", "draw",
    "fingerprint", "patch_labels", "questions", "scene", "split_words", "symbol_vocabulary", "symbols",
    "vocabulary", "write",
]  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="Draw a visual question set of shapes, numbers and words.")
    made.add_argument("--out", type=Path, help="folder to write to; a finished set in it is not changed")
    for split in ("train", "validation", "test"):
        made.add_argument(f"--{split}", type=int, default=0, metavar="N", help=f"images in {split}")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--difficulty", choices=list(LEVELS), default="tiny")
    made.add_argument("--format", choices=FORMATS, default="llava")
    made.add_argument("--group", action="store_true", help="one conversation per image instead of one row per question")
    made.add_argument("--kinds", default=",".join(KINDS), help="question kinds, separated by commas")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    made.add_argument("--blind", action="store_true", help="write nothing; print blind baselines by kind")
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.blind:
        print(baseline_table(blind_baselines(options.difficulty, options.seed)))
        return 0
    try:
        if options.out is None:
            raise ValueError("no folder given: set it with --out DIR")
        if options.workers < 1:
            raise ValueError(f"--workers: got {options.workers}, expected at least 1")
        kinds = tuple(kind for kind in options.kinds.split(",") if kind)
        sizes = (options.train, options.validation, options.test)
        settings = ShapesSettings(*sizes, options.seed, options.difficulty, options.format, options.group, kinds)
        summary = write(settings, options.out, options.workers)
    except ValueError as error:
        print(f"shapes.py: {error}", file=sys.stderr)
        return 2
    for split, counts in summary["splits"].items():
        print(f"{split}: {counts['pictures']} images, {sum(counts['questions'].values())} questions")
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
