"""`python -m dart_train export RUN --out DIR`: a run becomes a folder that plain transformers loads."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any

from ..exporting import export
from ..exporting.writing import DTYPES

FAILED = 1


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    before = signal.signal(signal.SIGTERM, _stop)  # so that what is half written is swept away
    try:
        export(
            options.run,
            options.out,
            checkpoint=options.checkpoint,
            adapter_only=options.adapter_only,
            force=options.force,
            dtype=options.dtype,
            base=options.base,
        )
    except RuntimeError as error:  # the proof failed: nothing was left behind
        print(f"dart_train export: {error}", file=sys.stderr)
        return FAILED
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _stop(*signal_and_frame: Any) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _which(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dart_train export", description=__doc__)
    parser.add_argument("run", help="the folder of a run, or of one of its checkpoints")
    parser.add_argument("--out", required=True, help="the folder to make")
    parser.add_argument("--checkpoint", type=_which, help="a step, newest or best (best where validation judged)")
    parser.add_argument("--adapter-only", action="store_true", help="keep the adapter apart, for plain PEFT")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (what training computed in)")
    parser.add_argument("--base", help="where an adapter's base model is now, if not where it was")
    return parser
