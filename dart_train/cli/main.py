"""`python -m dart_train COMMAND ...`: finds the command and runs it. Only its own module is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from .options import OK, REFUSED, Command, reports_errors

# Command: its module in dart_train, its function, what it does.
COMMANDS = {
    "train": ("cli.training", "train", "fine-tune with the reduction on"),
    "compare": ("cli.evaluation", "compare", "evaluate and time checkpoints, methods and budgets"),
    "calibrate": ("cli.evaluation", "calibrate", "choose the smallest budget that loses at most so many points"),
    "plan": ("cli.training", "plan", "predict time, memory and tokens of a training: does the reduction pay off?"),
    "check": ("cli.evaluation", "check", "test the laws of the reduction on a model"),
    "bench": ("benchmarks", "main", "measure what the reduction costs and gains on this machine"),
    "data": ("cli.training", "data", "check data before a run"),
    "export": ("cli.packaging", "export", "turn a run into a folder that plain transformers loads, and verify it"),
    "show": ("cli.evaluation", "show", "draw which visual tokens each method keeps of your image"),
    "chat": ("cli.evaluation", "chat", "ask a model about an image, with streaming, kept tokens and times"),
    "serve": ("cli.serving", "serve", "answer OpenAI's clients: streaming, batches, limits, metrics"),
    "base": ("cli.packaging", "base", "train a small base model on drawn shapes, from random weights"),
    "env": ("cli.packaging", "env", "what a bug report needs, and known bad combinations"),
}
USAGE = "usage: python -m dart_train COMMAND ...   (COMMAND --help lists its options)\n\ncommands:"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments else None
    if name not in COMMANDS:
        return _print_usage(name)
    return find_command(name)(arguments)


def find_command(name: str) -> Command:
    """The function of a command. It reports its errors and returns an exit code."""
    module, function, _ = COMMANDS[name]
    command: Command = getattr(importlib.import_module(f"dart_train.{module}"), function)
    return command if module.startswith("cli.") else reports_errors(name)(command)


def _print_usage(name: str | None) -> int:
    """To stdout if it was requested; otherwise it is an error."""
    requested = name in ("-h", "--help", "help")
    lines = [USAGE, *(f"  {command:9} {what}" for command, (*_, what) in COMMANDS.items())]
    if name is not None and not requested:
        lines.insert(0, f"unknown command {name!r}\n")
    print("\n".join(lines), file=sys.stdout if requested else sys.stderr)
    return OK if requested else REFUSED
