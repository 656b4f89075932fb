"""`python -m dart_train VERB ...`: a verb is a module with `main(argv) -> exit code`, imported on call."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

VERBS = {
    "train": ("dart_train.cli.train", "fine-tune with the reduction on"),
    "compare": ("dart_train.cli.compare", "ask, time and compare checkpoints, methods and budgets"),
    "plan": ("dart_train.cli.plan", "predict time, memory and tokens of a training: will the reduction pay?"),
    "check": ("dart_train.cli.check", "hold the laws of the reduction against a model"),
    "bench": ("dart_train.benchmarks", "measure what the reduction costs and gains on this machine"),
    "data": ("dart_train.cli.data", "check data before a run"),
    "export": ("dart_train.cli.export", "a run becomes a folder that plain transformers loads, and proves it"),
    "show": ("dart_train.cli.show", "draw which visual tokens each method keeps of your picture"),
    "chat": ("dart_train.cli.chat", "ask a model about a picture: streaming, tokens kept and time told"),
    "base": ("dart_train.cli.base", "train a small base model on drawn shapes, from nothing"),
    "env": ("dart_train.cli.env", "what a bug report needs, and known bad combinations"),
}
USAGE = "usage: python -m dart_train VERB ...   (VERB --help tells its options)\n\nverbs:"
WRONG_USE = 2


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments.pop(0) if arguments else None
    if verb not in VERBS:
        return _tell_verbs(verb)
    try:
        return int(importlib.import_module(VERBS[verb][0]).main(arguments))
    except (ValueError, NotImplementedError, OSError, ImportError) as error:
        if os.environ.get("DART_TRAIN_DEBUG") == "1":
            raise
        print(f"dart_train {verb}: {error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        return 130


def _tell_verbs(verb: str | None) -> int:
    """Asked for help: to the screen, and all is well. Anything else is an error."""
    asked = verb in ("-h", "--help", "help")
    lines = [USAGE, *(f"  {name:8} {what}" for name, (_, what) in VERBS.items())]
    if verb is not None and not asked:
        lines.insert(0, f"unknown verb {verb!r}\n")
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else WRONG_USE


if __name__ == "__main__":
    raise SystemExit(main())
