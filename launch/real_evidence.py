"""Fewer visual tokens on the base of pretrained parts, from its weights to the page of claims:

    python -m launch.real_evidence

Adaptations and scorers are trained side by side, two at a time with one thread each, then compared. Everything that was
finished before is kept, so that a stopped run is continued by the same command.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .demo import Commands, deepspeed_command, precision, python_command

BASE = "runs/real_base/model"
DART, SCORER, LEARNED = "recipes/real_dart.yaml", "recipes/real_scorer.yaml", "recipes/real_learned.yaml"
NAMES, TEXTS = "recipes/real_compare.yaml", "recipes/real_reading.yaml"
LOGS = Path("runs/real_logs")
CONTENT = "what,label,price,note"  # kinds of questions that a few places of the image answer
DRAWN = {
    "data/things_single": ("--train", "1600", "--seed", "1", "--kinds", CONTENT),
    "data/things_names": ("--test", "100", "--seed", "4", "--kinds", "what"),
    "data/things_texts": ("--test", "100", "--seed", "4", "--kinds", "label,price,note"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.real_evidence", description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2, help="processes of a comparison")
    parser.add_argument("--publish", action="store_true", help="write the page to data/results/real")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands: two at a time, on two cores
    commands = Commands()
    if not Path(BASE, "config.json").exists():
        commands.run("Assemble the base", python_command("-m", "data.real_base", "build", "--out", BASE))
    for folder, arguments in DRAWN.items():
        commands.run(f"Draw {folder}", python_command("-m", "data.things", "--out", folder, *arguments))
    train(commands)
    for title, recipe in (("Compare: names", NAMES), ("Compare: texts", TEXTS)):
        commands.run(title, deepspeed_command(options.ranks, "launch/compare.py", recipe, *model_dtype()))
    claims = ["-m", "data.real_base", "claims", "runs/real_compare", "--texts", "runs/real_reading"]
    claims += ["--out", "data/results/real"] if options.publish else []
    commands.run("Evaluate the claims", python_command(*claims))
    print(f"\n{commands.summary()}")
    return 0


def train(commands: Commands) -> None:
    """Each model, and a scorer of it. The control differs from the adapted model in the reduction alone."""
    pair: dict[str, Sequence[Sequence[str]]] = {
        "adapted": [
            _train(DART),
            _export("runs/real_dart"),
            _train(SCORER, "model.path=runs/real_dart_model", "train.output_dir=runs/real_scorer_adapted"),
        ],
        "control": [
            _train(DART, "reduction=none", "train.output_dir=runs/real_control"),
            _export("runs/real_control"),
            _train(SCORER, "model.path=runs/real_control_model", "train.output_dir=runs/real_scorer_control"),
        ],
    }
    commands.run_together("Adapt to DART, and the control", pair, LOGS)
    commands.run_together("A scorer of the base, and adapt to it", {"learned": [_train(SCORER), _train(LEARNED)]}, LOGS)


def _train(recipe: str, *overrides: str) -> list[str]:
    return deepspeed_command(1, "launch/train.py", recipe, *overrides, *precision(), *model_dtype())


def model_dtype() -> list[str]:
    """float32 wherever training is in fp32, in place of the recipes' bfloat16."""
    return ["model.dtype=float32"] if precision() else []


def _export(run: str) -> list[str]:
    return python_command("-m", "dart_train", "export", run, "--out", f"{run}_model", "--force")


if __name__ == "__main__":
    sys.exit(main())
