"""A visual question set that is drawn locally: coloured shapes, and small plates with numbers and words.

    python data/shapes.py --out DIR --train 2000 --validation 200 --test 500 --difficulty tiny
    python data/shapes.py --blind --difficulty tiny       # the accuracy of guessing without the image

Importable as `data.shapes`: `scene`, `draw`, `questions`, `patch_labels`, `symbols`, `vocabulary`.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

if __package__ in (None, ""):  # run as a file: `data.scenes` is in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.scenes.blind_baseline import baseline_table, blind_baselines
from data.scenes.difficulty import LEVELS
from data.scenes.drawing import draw
from data.scenes.labels import LABELS, patch_labels, split_words, symbol_vocabulary, symbols, vocabulary
from data.scenes.question_set import Summary, run_command, set_parser
from data.scenes.questions import KINDS, Question, questions
from data.scenes.scene import Item, Scene, describe, fingerprint, scene
from data.scenes.writer import FORMATS, SPLITS, ShapesSettings, write

__all__ = [
    "KINDS", "LABELS", "LEVELS", "Item", "Question", "Scene", "ShapesSettings", "blind_baselines", "describe", "draw",
    "fingerprint", "patch_labels", "questions", "scene", "split_words", "symbol_vocabulary", "symbols",
    "vocabulary", "write",
]  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = set_parser("Draw a visual question set of shapes, numbers and words.", SPLITS, KINDS)
    made.add_argument("--difficulty", choices=list(LEVELS), default="tiny")
    made.add_argument("--format", choices=FORMATS, default="llava")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    made.add_argument("--blind", action="store_true", help="write nothing; print blind baselines by kind")
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.blind:
        print(baseline_table(blind_baselines(options.difficulty, options.seed)))
        return 0

    def write_shapes(folder: Path) -> Summary:
        if options.workers < 1:
            raise ValueError(f"--workers: got {options.workers}, expected at least 1")
        chosen = {each.name: getattr(options, each.name) for each in fields(ShapesSettings)}
        return write(ShapesSettings(**chosen), folder, options.workers)

    return run_command("shapes.py", options.out, write_shapes)


if __name__ == "__main__":
    sys.exit(main())
