"""`bash launch/demo.sh`: the main commands of the project, one after the other, on a model small enough for a CPU."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dart_train.common.environment import read_environment
from dart_train.common.io import free_port

from .claim import Verdict, evaluate_claim, summarize, write_claim

TRAIN, COMPARE = "recipes/tiny_dart.yaml", "recipes/compare.yaml"
BASE = "data/tiny_base"
# The last two answer open questions of the papers, at the smallest budget alone: do pivots in the question help, and
# with which kinds; are dropped tokens better lost or merged?
METHODS = [
    "dart",
    "random",
    "pooling",
    "fastv",
    {"method": "dart", "text_pivots": 0, "name": "dart, unguided", "budgets": [0.111]},
    {"method": "dart", "merge": "nearest", "name": "dart, merged", "budgets": [0.111]},
]


def main() -> int:
    options = _parser().parse_args()
    folder, commands = Path(options.out), Commands()
    draw_scenes(commands, options, folder)
    verdicts = [run_seed(commands, options, folder, seed) for seed in range(options.seeds)]
    export(commands, folder / "seed-0" / "adapted", folder / "exported")
    write_claim(verdicts, folder, _facts(options, commands))
    print(f"\n{summarize(verdicts)}\n\n{commands.summary()}\n\n{_written(folder)}")
    return 0


@dataclass
class Commands:
    """Runs commands in order, shown as a user types them. The first that fails ends the demo with its exit code."""

    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, title: str, command: Sequence[str]) -> None:
        print(f"\n== {title}\n$ {shlex.join(command)}", flush=True)
        start = time.perf_counter()
        code = subprocess.run(command, check=False).returncode
        self.seconds[title] = time.perf_counter() - start
        if code:
            print(f"demo: stopped, because this failed with exit code {code}: {title}", file=sys.stderr)
            raise SystemExit(code)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def summary(self) -> str:
        lines = [f"{seconds:7.0f} s  {title}" for title, seconds in self.seconds.items()]
        return "\n".join([*lines, f"{self.total:7.0f} s  in total"])


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _deepspeed(ranks: int, script: str, *arguments: str) -> list[str]:
    """The launcher on this machine, with a free port, so that two demos can run at once."""
    launcher = ("-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port", str(free_port()))
    return _python(*launcher, script, *arguments)


def draw_scenes(commands: Commands, options: argparse.Namespace, folder: Path) -> None:
    """For training, all questions of an image are one conversation: one forward trains them all."""
    shapes = folder / "shapes"
    learned = ("--out", str(shapes / "learned"), "--train", str(options.train), "--group")
    questions = ("--out", str(shapes / "asked"), "--validation", "40", "--test", str(options.test))
    commands.run("Draw images for training", _python("data/shapes.py", *learned))
    commands.run("Draw other images for validation and test", _python("data/shapes.py", *questions))


def run_seed(commands: Commands, options: argparse.Namespace, folder: Path, seed: int) -> Verdict:
    """The adapted model and its control: the same samples and as many steps, but full tokens; then the comparison."""
    here, title = folder / f"seed-{seed}", f" (seed {seed})" if options.seeds > 1 else ""
    shapes = folder / "shapes"
    data = [f"data.{split}={json.dumps([_rows(shapes, split)])}" for split in ("train", "validation")]
    common = [f"model.path={BASE}", *data, f"train.seed={seed}", f"data.seed={seed}", *precision(), *options.change]
    runs = {"control": ["reduction=none"], "adapted": []}
    for name, changes in runs.items():
        what = "with DART in the forward" if name == "adapted" else "as long with full tokens: the control"
        overrides = [*common, *changes, f"train.output_dir={here / name}", "log.report_to=[wandb]"]
        command = _deepspeed(options.ranks, "launch/train.py", TRAIN, *overrides)
        commands.run(f"Fine-tune {what}{title}", command)
    checkpoints = {"base": BASE} | {name: str(here / name) for name in runs}
    compare(commands, f"Compare{title}", options, shapes, checkpoints, here / "compare")
    return evaluate_claim(here / "compare", seed)


def precision() -> list[str]:
    """The recipe's bf16 if the CPU has it; without, bf16 would be emulated and slow."""
    native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return [] if native or torch.cuda.is_available() else ["train.precision=fp32"]


def compare(
    commands: Commands, title: str, options: argparse.Namespace, shapes: Path, checkpoints: dict[str, str], out: Path
) -> None:
    sets = json.dumps([{**_rows(shapes, "test"), "name": "shapes", "metrics": ["exact_match"]}])
    overrides = [f"model.path={BASE}", f"compare.checkpoints={json.dumps(checkpoints)}", f"compare.sets={sets}"]
    overrides += [f"compare.methods={json.dumps(METHODS)}", "compare.batch_size=64", "compare.timing_repeats=3"]
    overrides += [f"compare.output_dir={out}", "log.report_to=[wandb]", *options.compare]
    commands.run(title, _deepspeed(options.ranks, "launch/compare.py", COMPARE, *overrides))


def export(commands: Commands, run: Path, out: Path) -> None:
    command = _python("-m", "dart_train", "export", str(run), "--out", str(out), "--force")
    commands.run("Export the adapted model; plain transformers loads it in a fresh process", command)


def _rows(shapes: Path, split: str) -> dict[str, str]:
    here = shapes / ("learned" if split == "train" else "asked")
    return {"path": str(here / f"{split}.json"), "images": str(here / "images")}


def _facts(options: argparse.Namespace, commands: Commands) -> dict[str, str]:
    facts = read_environment()
    versions = ", ".join(f"{name} {facts.versions[name]}" for name in ("torch", "transformers", "peft", "deepspeed"))
    return {
        "command": " ".join(["bash launch/demo.sh", *sys.argv[1:]]),
        "device": f"{platform.machine()} CPU, {options.ranks} ranks, {facts.cores} cores",
        "versions": versions,
        "took": f"{commands.total:.0f} s",
    }


def _written(folder: Path) -> str:
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
    parser.add_argument("--train", type=int, default=4800, help="images to train on")
    parser.add_argument("--test", type=int, default=85, help="images whose questions are compared")
    parser.add_argument("--change", nargs="*", default=[], metavar="key=value", help="of the training recipe")
    parser.add_argument("--compare", nargs="*", default=[], metavar="key=value", help="of the comparison's recipe")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
