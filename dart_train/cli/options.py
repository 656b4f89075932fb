"""What the commands share: types of options, common arguments, exit codes, and how errors are reported."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

Command = Callable[[Sequence[str]], int]

# Exit codes. A launcher that stops itself exits with a code of its own.
OK = 0
FAILED = 1  # the command ran, and its answer is no: errors in the data, a law broken, an export that differs
REFUSED = 2  # wrong options, recipe, data or folder: nothing was started
BAD_STEP = 3  # a NaN or Inf loss or gradient, with train.on_nan: stop
NOT_SAVED = 4  # a checkpoint could not be written, with train.on_save_error: stop
RANK_LOST = 5  # another rank has died or makes no progress
STOPPED = 75  # by SIGTERM, SIGUSR1 or, in a training, Ctrl-C; a checkpoint was written, and the same command resumes
INTERRUPTED = 130

REFUSALS = (ValueError, NotImplementedError, OSError, ImportError)  # errors of the user or of the environment
DTYPES = ("float32", "bfloat16", "float16")
_GRACE_SECONDS = 30.0


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def report_error(command: str, error: Exception, code: int = REFUSED, on_all_ranks: bool = False) -> int:
    """Prints the error once and returns the exit code.

    An error that all ranks have is reported by the first. For any other error the first rank is given time to report
    it and to exit, which makes the launcher end the others; only if it does not, they report what they have.
    """
    if os.environ.get("DART_TRAIN_DEBUG") == "1":
        raise error
    if rank() and not on_all_ranks:
        time.sleep(_GRACE_SECONDS)
    if not (rank() and on_all_ranks):
        print(f"{command}{f' (rank {rank()})' if rank() else ''}: {error}", file=sys.stderr, flush=True)
    return code


def reports_errors(command: str) -> Callable[[Command], Command]:
    """Decorator: a command whose refusals are reported and become exit codes."""

    def decorate(run: Command) -> Command:
        @functools.wraps(run)
        def reporting(argv: Sequence[str]) -> int:
            try:
                return int(run(argv))
            except REFUSALS as error:
                return report_error(command, error)
            except KeyboardInterrupt:
                if rank() == 0:
                    print(f"{command}: interrupted", file=sys.stderr, flush=True)
                return INTERRUPTED

        return reporting

    return decorate


def parser_of(command: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"python -m dart_train {command}", description=description, epilog=epilog)


def add_recipe(parser: argparse.ArgumentParser, example: str) -> None:
    parser.add_argument("recipe", help="recipe.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"changes to the recipe, such as {example}")


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Launchers append this argument; the environment has the same value."""
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def budget(text: str) -> int | float:
    """`64` is a number of tokens, `0.25` a ratio."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        _wrong(text, "a number of tokens such as 64, or a ratio such as 0.25")


def checkpoint(text: str) -> int | str:
    """A step, or the words that `load` knows."""
    return int(text) if text.isdigit() else text


def not_negative_int(text: str) -> int:
    if not text.isdecimal():
        _wrong(text, "a whole number >= 0")
    return int(text)


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        _wrong(text, "a whole number >= 1")
    return int(text)


def positive_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0:
        _wrong(text, "a number > 0")
    return number


def _wrong(text: str, expected: str) -> NoReturn:
    raise argparse.ArgumentTypeError(f"given {text!r}, expected {expected}")
