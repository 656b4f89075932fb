"""What the demo does: the commands of the README, each with the demo's own folders."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from .claim import Verdict, judge
from .steps import Steps, deepspeed, python

TRAIN, COMPARE = "recipes/tiny_dart.yaml", "recipes/compare.yaml"
BASE = "data/tiny_base"
# The last two are what the papers leave open, asked at the smallest budget alone: do pivots in the question help, and
# with which kinds; are dropped tokens better lost or merged?
METHODS = [
    "dart",
    "random",
    "pooling",
    "fastv",
    {"method": "dart", "text_pivots": 0, "name": "dart, unguided", "budgets": [0.111]},
    {"method": "dart", "merge": "nearest", "name": "dart, merged", "budgets": [0.111]},
]


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
    common = [f"model.path={BASE}", *data, f"train.seed={seed}", f"data.seed={seed}", *precision(), *options.change]
    runs = {"control": ["reduction=none"], "adapted": []}
    for name, changes in runs.items():
        what = "with DART in the forward" if name == "adapted" else "as long with full tokens: the control"
        overrides = [*common, *changes, f"train.output_dir={here / name}", "log.report_to=[wandb]"]
        steps.run(f"Fine-tune {what}{title}", deepspeed(options.ranks, "launch/train.py", TRAIN, *overrides))
    checkpoints = {"base": BASE} | {name: str(here / name) for name in runs}
    compare(steps, f"Compare{title}", options, shapes, checkpoints, here / "compare")
    return judge(here / "compare", seed)


def precision() -> list[str]:
    """The recipe's bf16, where the CPU multiplies in it; elsewhere it would only be emulated."""
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return [] if fast or torch.cuda.is_available() else ["train.precision=fp32"]


def compare(
    steps: Steps, title: str, options: argparse.Namespace, shapes: Path, checkpoints: dict[str, str], out: Path
) -> None:
    asked = json.dumps([{**_rows(shapes, "test"), "name": "shapes", "metrics": ["exact_match"]}])
    overrides = [f"model.path={BASE}", f"compare.checkpoints={json.dumps(checkpoints)}", f"compare.sets={asked}"]
    overrides += [f"compare.methods={json.dumps(METHODS)}", "compare.batch_size=64", "compare.timing_repeats=3"]
    overrides += [f"compare.output_dir={out}", "log.report_to=[wandb]", *options.compare]
    steps.run(title, deepspeed(options.ranks, "launch/compare.py", COMPARE, *overrides))


def export(steps: Steps, run: Path, out: Path) -> None:
    command = python("-m", "dart_train", "export", str(run), "--out", str(out), "--force")
    steps.run("Export the adapted model; plain transformers loads it in a fresh process", command)


def _rows(shapes: Path, split: str) -> dict[str, str]:
    here = shapes / ("learned" if split == "train" else "asked")
    return {"path": str(here / f"{split}.json"), "images": str(here / "images")}
