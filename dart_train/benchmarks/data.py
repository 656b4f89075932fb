"""`bench data`: rows a second of one core, and for what share of its time a training waits for them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from ..common.distributed import RankInfo
from ..config import load_recipe
from ..data.dataset import RowDataset
from ..models.processors import load_processor
from ..profiling.timing import Timing
from ..training.callbacks import read_metrics
from ..training.data_feed import TrainFeed
from .options import rows_of, scale_of, shapes_of
from .rows import ANSWER, QUESTION, SIZE, make_run
from .table import Table, milliseconds, percent

WORKERS = (0, 2)
STEPS, WARM = 8, 2  # of the training whose waits are read, and how many at its beginning are not looked at
PACKAGE = Path(__file__).parents[2]


def add_options(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> list[Table]:
    size = rows_of(options, shapes_of(options, "llava")[0])
    steps, number = (4, 8) if options.quick else (STEPS, 64)
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_run(Path(folder), scale_of(options), number, size, steps)
        rows = [reading(recipe)]
        rows += [training(recipe, workers, size, Path(folder) / f"run-{workers}") for workers in WORKERS]
    return [Table("Data", COLUMNS, rows, NOTES)]


def reading(recipe: Path) -> dict[str, Any]:
    """Open, decode, resize, encode, collate: all that a loader's process does, one row after the other."""
    read = load_recipe(recipe)
    feed = TrainFeed.open(read, RankInfo.read(), load_processor(read.model.path))
    rows, times = RowDataset(feed.reader), []
    for number in range(len(rows)):
        begun = time.perf_counter()
        feed.collator([rows[number]])
        times.append(time.perf_counter() - begun)
    timing = Timing.of(times[WARM:])
    return {"what": "reading, one core", "rows a second": 1 / timing.median, "seconds": timing}


def training(recipe: Path, workers: int, size: int, folder: Path) -> dict[str, Any]:
    """In a process of its own, as a user starts it."""
    command = [sys.executable, "-m", "dart_train", "train", str(recipe)]
    command += [f"data.workers={workers}", f"train.output_dir={folder}"]
    done = subprocess.run(command, cwd=PACKAGE, env=dict(os.environ), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the training whose waits are measured failed:\n{done.stderr[-2000:]}")
    lines = [line for line in read_metrics(folder) if "loss" in line][WARM:]
    waits = [line["data_wait_seconds"] for line in lines]
    shares = [wait / (wait + line["step_seconds"]) for wait, line in zip(waits, lines, strict=True)]
    return {
        "what": f"training, {workers} loader processes",
        "rows a second": median(line["samples_per_second"] for line in lines),
        "seconds": Timing.of(waits),
        "share of time that waits": median(shares),
        "choice, share of the step": median(line["selector_share"] for line in lines),
    }


def _share(name: str) -> Any:
    return lambda row: percent(row[name]) if name in row else ""


COLUMNS: dict[str, Any] = {
    "what": lambda row: row["what"],
    "rows a second": lambda row: f"{row['rows a second']:.3g}",
    "share of time that waits for rows": _share("share of time that waits"),
    "choice of tokens, share of the step": _share("choice, share of the step"),
    "ms a row, or that a step waits": lambda row: milliseconds(row["seconds"]),
}
NOTES = (
    f"Made on the spot: pictures of {SIZE[0]} x {SIZE[1]} pixels as JPEG, through the real LLaVA-1.5 processor to 576 "
    f"tokens; {QUESTION} words of question, {ANSWER} of answer. LoRA, DART to 64 tokens, the trainer's own metrics.",
)
