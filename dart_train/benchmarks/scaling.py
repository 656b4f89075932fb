"""`bench data` and `bench ranks`: whether a training waits for its rows, and what a step loses on two ranks.

Also the process of one rank: `python -m torch.distributed.run ... -m dart_train.benchmarks.scaling JOB SECONDS`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ..common.distributed import RankInfo
from ..config import load_recipe
from ..data.dataset import RowDataset
from ..hooks import attach
from ..models.processors import load_processor
from ..profiling.timing import Timing
from ..reduction import DART
from ..training.callbacks import read_metrics
from ..training.data_feed import TrainFeed
from .cli import repeats_of, rows_of, scale_of, shapes_of
from .model_shapes import SHAPES
from .table import NOT_MEASURED, BenchTable, milliseconds, percent, times
from .training_step import TrainStep
from .workloads import ANSWER, ANSWER_WORDS, IMAGE_SIZE, LAYER, QUESTION_WORDS, BenchModel, make_run

WORKERS = (0, 2)  # loader processes
STEPS, WARM_UP = 8, 2  # of the training whose waits are measured; the first ones are not counted
RANKS = (1, 2)
ROUNDS = 2
ROOT = Path(__file__).parents[2]


def bench_data(options: argparse.Namespace) -> BenchTable:
    size = rows_of(options, shapes_of(options, "llava")[0])
    steps, number = (4, 8) if options.quick else (STEPS, 64)
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_run(Path(folder), scale_of(options), number, size, steps)
        rows = [measure_reading(recipe)]
        rows += [measure_waiting(recipe, workers, Path(folder) / f"run-{workers}") for workers in WORKERS]
    return BenchTable("Data", DATA_COLUMNS, rows, DATA_NOTES)


def measure_reading(recipe: Path) -> dict[str, Any]:
    """Open, decode, resize, encode, collate: the work of a loader process, one row after the other."""
    loaded = load_recipe(recipe)
    feed = TrainFeed.open(
        loaded, RankInfo.read(), load_processor(loaded.model.path, template=loaded.data.template_text())
    )
    rows, seconds = RowDataset(feed.reader), []
    for number in range(len(rows)):
        start = time.perf_counter()
        feed.collator([rows[number]])
        seconds.append(time.perf_counter() - start)
    timing = Timing.of(seconds[WARM_UP:])
    return {"what": "reading, one core", "rows a second": 1 / timing.median, "seconds": timing}


def measure_waiting(recipe: Path, workers: int, folder: Path) -> dict[str, Any]:
    """In a process of its own, started as a user starts it."""
    command = [sys.executable, "-m", "dart_train", "train", str(recipe)]
    command += [f"data.workers={workers}", f"train.output_dir={folder}"]
    _run(command, dict(os.environ), "the training whose waits are measured failed")
    lines = [line for line in read_metrics(folder) if "loss" in line][WARM_UP:]
    waits = [line["data_wait_seconds"] for line in lines]
    shares = [wait / (wait + line["step_seconds"]) for wait, line in zip(waits, lines, strict=True)]
    return {
        "what": f"training, {workers} loader processes",
        "rows a second": median(line["samples_per_second"] for line in lines),
        "seconds": Timing.of(waits),
        "share of time that waits": median(shares),
        "choice, share of the step": median(line["selector_share"] for line in lines),
    }


def _run(command: list[str], environment: dict[str, str], failure: str) -> None:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{failure}:\n{done.stderr[-3000:]}")


def _cell(name: str, write: Any, missing: str = "") -> Any:
    return lambda row: write(row[name]) if name in row else missing


DATA_COLUMNS: dict[str, Any] = {
    "what": lambda row: row["what"],
    "rows a second": lambda row: f"{row['rows a second']:.3g}",
    "share of time that waits for rows": _cell("share of time that waits", percent),
    "selection of tokens, share of the step": _cell("choice, share of the step", percent),
    "ms a row, or that a step waits": lambda row: milliseconds(row["seconds"]),
}
DATA_NOTES = (
    f"Generated data: images of {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]} pixels as JPEG, through the real LLaVA-1.5 processor "
    f"to 576 tokens; {QUESTION_WORDS} words of question, {ANSWER_WORDS} of answer. LoRA, DART to 64 tokens, the "
    "trainer's own metrics.",
)


def bench_ranks(options: argparse.Namespace) -> BenchTable:
    """Each rank trains on its own rows (DDP, LoRA, DART), as many as a single rank does."""
    shape = shapes_of(options, "llava")[0]
    job = {
        "shape": shape.key,
        "scale": scale_of(options),
        "rows": rows_of(options, shape),
        "repeats": repeats_of(options),
        "device": options.device.type,
        "dtype": str(options.dtype).removeprefix("torch."),
    }
    possible = [n for n in RANKS if options.device.type != "cuda" or n <= torch.cuda.device_count()]
    seconds: dict[int, list[float]] = {n: [] for n in possible}
    for _ in range(1 if options.quick else ROUNDS):
        for ranks in possible:
            seconds[ranks] += launch_ranks(job, ranks)
    return BenchTable("Ranks", RANKS_COLUMNS, [_ranks_row(n, seconds, shape.name) for n in RANKS], RANKS_NOTES)


def launch_ranks(job: dict[str, Any], ranks: int) -> list[float]:
    """Seconds of each step, as rank 0 measured them."""
    with tempfile.TemporaryDirectory() as folder:
        file, result = Path(folder) / "job.json", Path(folder) / "seconds.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += ["-m", __name__, str(file), str(result)]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        _run(command, environment, f"training on {ranks} ranks failed")
        found: list[float] = json.loads(result.read_text(encoding="utf-8"))
    return found


def _ranks_row(ranks: int, seconds: dict[int, list[float]], model: str) -> dict[str, Any]:
    if ranks not in seconds:
        return {"model": model, "ranks": ranks}
    alone, here = median(seconds[1]), median(seconds[ranks])
    return {
        "model": model,
        "ranks": ranks,
        "rows a second against one": ranks * alone / here,
        "efficiency": alone / here,
        "seconds": Timing.of(seconds[ranks]),
    }


RANKS_COLUMNS: dict[str, Any] = {
    "model": lambda row: row["model"],
    "ranks": lambda row: str(row["ranks"]),
    "rows a second against one": _cell("rows a second against one", times, NOT_MEASURED),
    "of ideal": _cell("efficiency", percent, NOT_MEASURED),
    "ms a step, median [quartiles]": _cell("seconds", milliseconds, NOT_MEASURED),
}
RANKS_NOTES = (
    "DDP, LoRA, DART; each rank has as many rows as a single rank. On a CPU ranks share its memory and caches, and "
    "whatever else runs there.",
)


def run_rank(job: dict[str, Any], result: Path) -> None:
    """The process of one rank."""
    cuda, local = job["device"] == "cuda", int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo")
    shape, dtype = SHAPES[job["shape"]], getattr(torch, job["dtype"])
    bench = BenchModel.build(shape, job["scale"], job["rows"], device, dtype, "lora", ANSWER)
    attached = attach(bench.model, DART(keep=shape.kept, layer=LAYER), output="compact")
    trainer = TrainStep(bench, DistributedDataParallel(bench.model, device_ids=[local] if cuda else None))
    seconds = []
    for _ in range(1 + job["repeats"]):
        dist.barrier()
        start = time.perf_counter()
        trainer.update(trainer.loss(attached, False))
        dist.barrier()
        seconds.append(time.perf_counter() - start)
    if dist.get_rank() == 0:
        result.write_text(json.dumps(seconds[1:]), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    run_rank(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
