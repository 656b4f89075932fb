"""`bash launch/demo.sh`: the commands of the README, one after the other, on a model small enough for a CPU."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

from dart_train.common.environment import read_environment

from .claim import told, write
from .steps import Steps
from .story import draw, export, one_seed


def main() -> int:
    options = _parser().parse_args()
    folder, steps = Path(options.out), Steps()
    draw(steps, options, folder)
    verdicts = [one_seed(steps, options, folder, seed) for seed in range(options.seeds)]
    first = folder / "seed-0"
    export(steps, first / "adapted", folder / "exported")
    write(verdicts, folder, _how(options, steps))
    print(f"\n{told(verdicts)}\n\n{steps.told()}\n\n{_where(folder)}")
    return 0


def _how(options: argparse.Namespace, steps: Steps) -> dict[str, str]:
    facts = read_environment()
    versions = ", ".join(f"{name} {facts.versions[name]}" for name in ("torch", "transformers", "peft", "deepspeed"))
    return {
        "command": " ".join(["bash launch/demo.sh", *sys.argv[1:]]),
        "device": f"{platform.machine()} CPU, {options.ranks} ranks, {facts.cores} cores",
        "versions": versions,
        "took": f"{steps.total:.0f} s",
    }


def _where(folder: Path) -> str:
    compared = folder / "seed-0" / "compare"
    return "\n".join(
        [
            f"report            {compared / 'report.html'}   (opens from disk)",
            f"table             {compared / 'table.md'}, {compared / 'table.csv'}; every answer in results.jsonl",
            f"exported model    {folder / 'exported'}",
            f"W&B, offline      {folder / 'seed-0' / 'adapted' / 'wandb'}   (wandb sync sends it)",
            f"claim             {folder / 'claim.md'}",
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bash launch/demo.sh", description=__doc__)
    parser.add_argument("--out", default="runs/demo", help="folder of all that is written (runs/demo)")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions of training and comparison (1)")
    parser.add_argument("--ranks", type=int, default=min(2, os.cpu_count() or 1), help="processes (2)")
    parser.add_argument("--train", type=int, default=4800, help="pictures to train on")
    parser.add_argument("--test", type=int, default=85, help="pictures to ask about")
    parser.add_argument("--change", nargs="*", default=[], metavar="key=value", help="of the training recipe")
    parser.add_argument("--compare", nargs="*", default=[], metavar="key=value", help="of the comparison's recipe")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
