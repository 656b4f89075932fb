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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from dart_train.cli.options import FAILED, OK
from dart_train.common.environment import bf16_is_emulated, read_environment
from dart_train.common.io import free_port

from .claim import SECOND_SET, SET, Verdict, evaluate_claim, summarize, write_claim
from .publish import publish

SCORER, TRAIN, COMPARE = "recipes/tiny_scorer.yaml", "recipes/tiny_learned.yaml", "recipes/compare.yaml"
BASE = "data/tiny_base"
BUDGETS = [0.222, 0.111, 0.056]
METHODS = [
    {"method": "learned", "share": 1.0, "name": "learned", "checkpoints": ["base", "adapted"]},
    # The same scorer decides a quarter of the budget, and DART, which looks at no question, the rest.
    {
        "method": "learned",
        "share": 0.25,
        "name": "learned, a quarter",
        "checkpoints": ["base", "adapted"],
        "budgets": [0.111],
    },
    "dart",
    {"method": "dart", "merge": "nearest", "name": "dart, merged", "budgets": [0.111]},
    {"method": "fastv", "budgets": [0.111]},
]
SECOND_TURN_QUESTIONS = 150  # of the test set


def main() -> int:
    options = _parser().parse_args()
    folder, commands = Path(options.out), Commands()
    draw_scenes(commands, options, folder)
    verdicts = [run_seed(commands, options, folder, seed) for seed in range(options.seeds)]
    adapted = folder / "seed-0" / "adapted"
    calibrate(commands, options, folder, adapted)
    export(commands, adapted, folder / "exported")
    write_claim(verdicts, folder, _facts(options, commands))
    if options.publish:
        publish(folder)
    print(f"\n{summarize(verdicts)}\n\n{commands.summary()}\n\n{_written(folder)}")
    return 0


@dataclass
class Commands:
    """Runs commands, shown as a user types them. The first that fails ends the demo with its exit code."""

    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, title: str, command: Sequence[str], accepted: Sequence[int] = (0,)) -> None:
        """accepted: exit codes with which the demo continues."""
        print(f"\n== {title}\n$ {shlex.join(command)}", flush=True)
        start = time.perf_counter()
        code = subprocess.run(command, check=False).returncode
        self._finish(title, start, 0 if code in accepted else code)

    def run_together(self, title: str, chains: dict[str, Sequence[Sequence[str]]], logs: Path) -> None:
        """Chains of commands, side by side; the output of each goes to a file of its name in `logs`."""
        logs.mkdir(parents=True, exist_ok=True)
        files = {name: logs / f"{name}.log" for name in chains}
        for name, commands in chains.items():
            print(f"\n== {title}: {name}, output in {files[name]}", flush=True)
            print("\n".join(f"$ {shlex.join(command)}" for command in commands), flush=True)
        start = time.perf_counter()
        with ThreadPoolExecutor(len(chains)) as pool:
            codes = dict(zip(chains, pool.map(_run_chain, chains.values(), files.values()), strict=True))
        for name, code in codes.items():
            if code:
                print("".join(files[name].read_text().splitlines(keepends=True)[-20:]), file=sys.stderr)
            self._finish(f"{title}: {name}", start, code)
        for name in chains:  # they ran at the same time: their time counts once
            self.seconds.pop(f"{title}: {name}")
        self.seconds[title] = time.perf_counter() - start

    def _finish(self, title: str, start: float, code: int) -> None:
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


def _run_chain(commands: Sequence[Sequence[str]], log: Path) -> int:
    """Exit code of the first command that fails, or 0."""
    with log.open("w", encoding="utf-8") as output:
        for command in commands:
            code = subprocess.run(command, check=False, stdout=output, stderr=subprocess.STDOUT).returncode
            if code:
                return code
    return 0


def python_command(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def deepspeed_command(ranks: int, script: str, *arguments: str) -> list[str]:
    """The launcher on this machine, with a free port, so that two demos can run at once."""
    launcher = ("-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port", str(free_port()))
    return python_command(*launcher, script, *arguments)


def draw_scenes(commands: Commands, options: argparse.Namespace, folder: Path) -> None:
    shapes = folder / "shapes"
    learned = ("--out", str(shapes / "learned"), "--train", str(options.train))
    questions = ("--out", str(shapes / "asked"), "--validation", str(options.validation), "--test", str(options.test))
    commands.run("Draw images for training", python_command("data/shapes.py", *learned))
    commands.run("Draw other images for validation and test", python_command("data/shapes.py", *questions))


def run_seed(commands: Commands, options: argparse.Namespace, folder: Path, seed: int) -> Verdict:
    """The choice first: a scorer on the frozen base. Then the model adapts to it. At the same time the control: the
    same samples and as many steps, with full tokens. Then the comparison."""
    here, title = folder / f"seed-{seed}", f" (seed {seed})" if options.seeds > 1 else ""
    scorer, adapted, control = (str(here / name) for name in ("scorer", "adapted", "control"))
    rows = [f"data.train={json.dumps([_rows(folder / 'shapes', 'train')])}", f"train.seed={seed}", f"data.seed={seed}"]
    common = [f"model.path={BASE}", *rows, *precision(), "log.report_to=[wandb]"]
    trained = [*common, *options.change]
    learned = [f"scorer.path={scorer}"]
    chains: dict[str, Sequence[Sequence[str]]] = {
        "scorer-and-model": [
            _train(SCORER, [*common, *options.change_scorer, f"train.output_dir={scorer}"]),
            _train(TRAIN, [*trained, *learned, f"train.output_dir={adapted}"]),
        ],
        "control": [
            _train(TRAIN, [*trained, "reduction=none", "distill.enabled=false", f"train.output_dir={control}"])
        ],
    }
    commands.run_together(f"Train{title}", chains, here / "logs")
    checkpoints = {"base": scorer, "control": control, "adapted": adapted}
    compare(commands, f"Compare{title}", options, folder / "shapes", checkpoints, here / "compare")
    return evaluate_claim(here / "compare", seed)


def _train(recipe: str, overrides: Sequence[str]) -> list[str]:
    """With one rank: two trainings run side by side."""
    return deepspeed_command(1, "launch/train.py", recipe, *overrides)


def precision() -> list[str]:
    """The recipe's bf16 if the CPU has it; without, bf16 would be emulated and slow."""
    return ["train.precision=fp32"] if bf16_is_emulated() else []


def compare(
    commands: Commands, title: str, options: argparse.Namespace, shapes: Path, checkpoints: dict[str, str], out: Path
) -> None:
    test = {**_rows(shapes, "test"), "metrics": ["exact_match"]}
    some = {"name": SECOND_SET, "limit": SECOND_TURN_QUESTIONS, "second_turn": ["anew", "cached"]}
    sets = [{**test, "name": SET}, {**test, **some}]
    overrides = [f"model.path={BASE}", f"compare.checkpoints={json.dumps(checkpoints)}"]
    overrides += [f"compare.sets={json.dumps(sets)}", f"compare.budgets={json.dumps(BUDGETS)}"]
    overrides += [f"compare.methods={json.dumps(METHODS)}", "compare.batch_size=64", "compare.timing_repeats=3"]
    overrides += [f"compare.output_dir={out}", "log.report_to=[wandb]", *options.compare]
    commands.run(title, deepspeed_command(options.ranks, "launch/compare.py", COMPARE, *overrides))


def calibrate(commands: Commands, options: argparse.Namespace, folder: Path, run: Path) -> None:
    """On validation questions: which budget keeps the answers? The export is then served at it."""
    sets = [{**_rows(folder / "shapes", "validation"), "name": "validation", "metrics": ["exact_match"]}]
    overrides = [f"compare.sets={json.dumps(sets)}", "compare.budgets=[0.222,0.167,0.111,0.056]"]
    overrides += ["compare.batch_size=64", f"compare.output_dir={folder / 'seed-0'}"]
    command = python_command("-m", "dart_train", "calibrate", str(run), COMPARE, *overrides, "--max-loss", "2")
    commands.run(
        "Calibrate: the smallest budget that loses at most 2 points, with confidence 0.95", command, (OK, FAILED)
    )


def export(commands: Commands, run: Path, out: Path) -> None:
    command = python_command("-m", "dart_train", "export", str(run), "--out", str(out), "--force")
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
            f"exported model    {folder / 'exported'}   (its README.md: where it breaks)",
            f"W&B, offline      {folder / 'seed-0' / 'adapted' / 'wandb'}   (wandb sync sends it)",
            f"claim             {folder / 'claim.md'}",
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bash launch/demo.sh", description=__doc__)
    parser.add_argument("--out", default="runs/demo", help="folder of all that is written (runs/demo)")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions of training and comparison (1)")
    parser.add_argument("--ranks", type=int, default=min(2, os.cpu_count() or 1), help="processes of a comparison (2)")
    parser.add_argument("--train", type=int, default=4800, help="images to train on")
    parser.add_argument("--validation", type=int, default=600, help="images whose questions choose the budget")
    parser.add_argument("--test", type=int, default=85, help="images whose questions are compared")
    parser.add_argument("--change", nargs="*", default=[], metavar="key=value", help="of the model's training recipe")
    parser.add_argument("--change-scorer", nargs="*", default=[], metavar="key=value", help="of the scorer's recipe")
    parser.add_argument("--compare", nargs="*", default=[], metavar="key=value", help="of the comparison's recipe")
    parser.add_argument("--publish", action="store_true", help="write the results to data/results/demo")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
