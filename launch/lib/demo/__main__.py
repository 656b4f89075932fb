"""`bash launch/demo.sh`: the commands of the README, one after the other, on a model small enough for a CPU."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from dart_train.env import gather

from .claim import Verdict, judge, told, write
from .steps import Steps, deepspeed, python

TRAIN, COMPARE = "recipes/tiny_dart.yaml", "recipes/compare.yaml"
BASE = "data/tiny_base"


def main() -> int:
    options = _parser().parse_args()
    folder, steps = Path(options.out), Steps()
    draw(steps, options, folder)
    verdicts = [one_seed(steps, options, folder, seed) for seed in range(options.seeds)]
    first = folder / "seed-0"
    steps.run(
        "Export the adapted model; plain transformers loads it in a fresh process",
        python("-m", "dart_train", "export", str(first / "adapted"), "--out", str(folder / "exported"), "--force"),
    )
    write(verdicts, folder, _how(options))
    print(f"\n{told(verdicts)}\n\n{steps.told()}\n\n{_where(folder)}")
    return 0


def draw(steps: Steps, options: argparse.Namespace, folder: Path) -> None:
    """To learn from, all questions of a picture are one conversation: one forward teaches them all."""
    shapes = folder / "shapes"
    learned = ("--out", str(shapes / "learned"), "--train", str(options.train), "--group")
    asked = ("--out", str(shapes / "asked"), "--validation", "40", "--test", str(options.test))
    steps.run("Draw pictures to learn from", python("data/shapes.py", *learned))
    steps.run("Draw other pictures to ask about", python("data/shapes.py", *asked))


def one_seed(steps: Steps, options: argparse.Namespace, folder: Path, seed: int) -> Verdict:
    """The adapted model and its control: the same samples, as many steps, but full tokens; then the comparison."""
    here, title = folder / f"seed-{seed}", f" (seed {seed})" if options.seeds > 1 else ""
    shapes = folder / "shapes"
    rows = {name: json.dumps([_rows(shapes, name)]) for name in ("train", "validation")}
    data = [f"data.{name}={rows[name]}" for name in rows]
    common = [f"model.path={BASE}", *data, f"train.seed={seed}", f"data.seed={seed}", *options.change]
    runs = {"control": ["reduction=none"], "adapted": []}
    for name, changes in runs.items():
        what = "with DART in the forward" if name == "adapted" else "as long with full tokens: the control"
        overrides = [*common, *changes, f"train.output_dir={here / name}", "log.report_to=[wandb]"]
        steps.run(f"Fine-tune {what}{title}", deepspeed(options.ranks, "launch/train.py", TRAIN, *overrides))
    checkpoints = {"base": BASE} | {name: str(here / name) for name in runs}
    asked = json.dumps([{**_rows(shapes, "test"), "name": "shapes", "metrics": ["exact_match"]}])
    overrides = [f"model.path={BASE}", f"compare.checkpoints={json.dumps(checkpoints)}", f"compare.sets={asked}"]
    overrides += ["compare.methods=[dart, random, pooling, fastv]", "compare.batch_size=64", "log.report_to=[wandb]"]
    overrides += [f"compare.output_dir={here / 'compare'}", *options.compare]
    steps.run(f"Compare{title}", deepspeed(options.ranks, "launch/compare.py", COMPARE, *overrides))
    return judge(here / "compare", seed)


def _rows(shapes: Path, split: str) -> dict[str, str]:
    here = shapes / ("learned" if split == "train" else "asked")
    return {"path": str(here / f"{split}.json"), "images": str(here / "images")}


def _how(options: argparse.Namespace) -> dict[str, str]:
    facts = gather()
    versions = ", ".join(f"{name} {facts.versions[name]}" for name in ("torch", "transformers", "peft", "deepspeed"))
    return {
        "command": " ".join(["bash launch/demo.sh", *sys.argv[1:]]),
        "device": f"{platform.machine()} CPU, {options.ranks} ranks, {facts.cores} cores",
        "versions": versions,
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
    parser.add_argument("--train", type=int, default=3000, help="pictures to train on")
    parser.add_argument("--test", type=int, default=70, help="pictures to ask about")
    parser.add_argument("--change", nargs="*", default=[], metavar="key=value", help="of the training recipe")
    parser.add_argument("--compare", nargs="*", default=[], metavar="key=value", help="of the comparison's recipe")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
