"""Write a set: `python -m data.things --out DIR --train 2000 --validation 200 --test 500`."""

from __future__ import annotations

import argparse
import sys

from data.scenes.question_set import run_command, set_parser
from data.things.catalogue import STYLES
from data.things.questions import KINDS
from data.things.scene import SPLITS
from data.things.writer import ThingsSettings, write


def parser() -> argparse.ArgumentParser:
    made = set_parser("Draw a visual question set of things.", SPLITS, KINDS, "python -m data.things")
    made.add_argument("--style", choices=STYLES, default=STYLES[0], help="of the drawings")
    made.add_argument("--each", type=int, default=1, help="questions of each kind per image, at most")
    return made


def main(arguments: list[str] | None = None) -> int:
    options = vars(parser().parse_args(arguments))
    folder = options.pop("out")
    return run_command("data.things", folder, lambda folder: write(ThingsSettings(**options), folder))


if __name__ == "__main__":
    sys.exit(main())
