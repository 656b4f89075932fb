"""`bench ranks`: the same step on one rank and on two: what a rank loses to the company of others.

Each rank trains on its own rows (DDP, LoRA, DART), as many as a rank alone does; started by torch's launcher.
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

from ..profiling.timing import Timing
from .options import repeats_of, rows_of, scale_of, shapes_of
from .table import NOT_MEASURED, Table, milliseconds, percent, times

RANKS = (1, 2)
ROUNDS = 2
PACKAGE = Path(__file__).parents[2]


def add_options(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> list[Table]:
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
    spent: dict[int, list[float]] = {n: [] for n in possible}
    for _ in range(1 if options.quick else ROUNDS):
        for number in possible:
            spent[number] += launched(job, number)
    return [Table("Ranks", COLUMNS, [_row(number, spent, shape.name) for number in RANKS], NOTES)]


def launched(job: dict[str, Any], ranks: int) -> list[float]:
    """Seconds of each step, as rank 0 saw them."""
    with tempfile.TemporaryDirectory() as folder:
        file, answer = Path(folder) / "job.json", Path(folder) / "seconds.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += ["-m", __name__, str(file), str(answer)]
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        done = subprocess.run(
            command, cwd=PACKAGE, env={**os.environ, **threads}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"training on {ranks} ranks failed:\n{done.stderr[-3000:]}")
        found: list[float] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def _row(ranks: int, spent: dict[int, list[float]], model: str) -> dict[str, Any]:
    if ranks not in spent:
        return {"model": model, "ranks": ranks}
    alone, here = median(spent[1]), median(spent[ranks])
    return {
        "model": model,
        "ranks": ranks,
        "rows a second against one": ranks * alone / here,
        "efficiency": alone / here,
        "seconds": Timing.of(spent[ranks]),
    }


def _cell(name: str, write: Any) -> Any:
    return lambda row: write(row[name]) if name in row else NOT_MEASURED


COLUMNS: dict[str, Any] = {
    "model": lambda row: row["model"],
    "ranks": lambda row: str(row["ranks"]),
    "rows a second against one": _cell("rows a second against one", times),
    "of ideal": _cell("efficiency", percent),
    "ms a step, median [quartiles]": _cell("seconds", milliseconds),
}
NOTES = (
    "DDP, LoRA, DART; each rank has as many rows as one rank alone. On a CPU ranks share its memory and caches, and "
    "whatever else runs there.",
)


def work(job: dict[str, Any], answer: Path) -> None:
    """One rank."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from ..hooks import attach
    from ..reduction import DART
    from .batches import ANSWER
    from .shapes import SHAPES
    from .subject import subject_of
    from .training import TrainStep
    from .ways import LAYER

    cuda, local = job["device"] == "cuda", int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo")
    shape, dtype = SHAPES[job["shape"]], getattr(torch, job["dtype"])
    subject = subject_of(shape, job["scale"], job["rows"], device, dtype, "lora", ANSWER)
    attached = attach(subject.model, DART(keep=shape.kept, layer=LAYER), output="compact")
    trainee = TrainStep(subject, DistributedDataParallel(subject.model, device_ids=[local] if cuda else None))
    seconds = []
    for _ in range(1 + job["repeats"]):
        dist.barrier()
        begun = time.perf_counter()
        trainee.learn(trainee.loss(attached, False))
        dist.barrier()
        seconds.append(time.perf_counter() - begun)
    if dist.get_rank() == 0:
        answer.write_text(json.dumps(seconds[1:]), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    work(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
