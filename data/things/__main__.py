"""Write a set: `python -m data.things --out DIR --train 2000 --validation 200 --test 500`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.things.catalogue import STYLES
from data.things.questions import KINDS
from data.things.scene import SPLITS
from data.things.writer import ThingsSettings, write


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m data.things", description="Draw a visual question set of things.")
    made.add_argument("--out", type=Path, required=True, help="folder to write to; a finished set in it is not changed")
    for split in SPLITS:
        made.add_argument(f"--{split}", type=int, default=0, metavar="N", help=f"images in {split}")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--style", choices=STYLES, default=STYLES[0], help="of the drawings")
    made.add_argument("--each", type=int, default=1, help="questions of each kind per image, at most")
    made.add_argument("--group", action="store_true", help="one conversation per image instead of one row per question")
    made.add_argument("--kinds", default=",".join(KINDS), help="question kinds, separated by commas")
    return made


def main(arguments: list[str] | None = None) -> int:
    options = vars(parser().parse_args(arguments))
    folder = options.pop("out")
    try:
        kinds = tuple(kind for kind in options.pop("kinds").split(",") if kind)
        summary = write(ThingsSettings(**options, kinds=kinds), folder)
    except ValueError as error:
        print(f"data.things: {error}", file=sys.stderr)
        return 2
    for split, counts in summary["splits"].items():
        print(f"{split}: {counts['pictures']} images, {sum(counts['questions'].values())} questions")
    print(f"written to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
