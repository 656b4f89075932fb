"""What quantized weights save in memory, and what a QLoRA step costs against a LoRA step on weights in bf16.

    python -m launch.bench_quantized --out data/results/benchmarks      # about ten minutes on two cores

Each run is a process of its own, which trains a recipe as `train` does, in turn (bf16, nf4, bf16, ...). The model is a
LLaVA of random weights, saved in shards; DART keeps 64 of 576 visual tokens from layer 2. Memory is read from
/proc/self/status: what is resident after loading, and the peak from then on. The peak while loading is not compared:
it counts pages of the weights' files, which the kernel may drop. Times are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from dart_train.common.distributed import RankInfo
from dart_train.common.tables import markdown_table
from dart_train.config import load_recipe
from dart_train.training.run import build, prepare

from .bench_backends import LORA, RECIPE
from .bench_preference import ROOT, StepTimes, make_model, make_rows

WAYS = {
    "LoRA, bf16 weights": [],
    "QLoRA, nf4 weights": ["model.quantization=nf4"],
    "QLoRA, int8 weights": ["model.quantization=int8"],
}
COMMON = [*LORA, "train.zero_stage=0", "train.precision=bf16", "model.dtype=bfloat16"]
GIB = 2**30
Figures = dict[str, Any]  # of one run: weights, resident, peak (GiB), seconds of each step but the first, loss


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench_quantized", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="runs of each (2)")
    parser.add_argument("--steps", type=int, default=4, help="of each run (4)")
    parser.add_argument("--width", type=int, default=2048, help="of the language model (2048: 0.4 billion weights)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS)[:2])
    parser.add_argument("--out", type=Path, help="folder for quantized_cpu.json and quantized_cpu.md")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        print(json.dumps(measure(options.child[0], options.child[1:])))
        return 0
    folder, found = Path(tempfile.mkdtemp(prefix="bench_quantized_")), dict[str, list[Figures]]()
    try:
        prepare_files(folder, options.width, options.steps)
        for number in range(options.rounds):
            for way in options.ways:
                found.setdefault(way, []).append(run(way, folder, number))
                print(f"{way}: {found[way][-1]}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = as_text(found, f"python -m launch.bench_quantized {shlex.join(argv)}", options.width)
    print(text)
    if options.out is not None:
        (options.out / "quantized_cpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (options.out / "quantized_cpu.md").write_text(text, encoding="utf-8")
    return 0


def prepare_files(folder: Path, width: int, steps: int) -> None:
    make_model(folder / "model", width)
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.bfloat16)
    (folder / "model" / "model.safetensors").unlink()
    model.save_pretrained(folder / "model", max_shard_size="100MB")
    rows = make_rows(folder, 8)
    answered = [{**{key: row[key] for key in ("question", "image")}, "answer": row["chosen"]}
                for row in json.loads(rows.read_text())]  # fmt: skip
    rows.write_text(json.dumps(answered))
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, steps=steps))


def run(way: str, folder: Path, number: int) -> Figures:
    output = folder / f"{way.replace(' ', '_')}-{number}"
    train = [str(folder / "recipe.yaml"), *COMMON, *WAYS[way], f"train.output_dir={output}"]
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch.bench_quantized", "--child", *train]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    found: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(recipe: str, overrides: Sequence[str]) -> Figures:
    """In this process. `weights`: parameters and buffers of the model, adapters included."""
    torch.set_num_threads(1)
    trainer, times = build(prepare(load_recipe(Path(recipe), list(overrides)), RankInfo.read())), StepTimes()
    gc.collect()
    model: Any = trainer.model
    tensors = {each.data_ptr(): each for each in (*model.parameters(), *model.buffers())}
    weights = sum(each.numel() * each.element_size() for each in tensors.values()) / GIB
    resident = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    trainer.add_callback(times)
    trainer.train()
    loss = next(line["loss"] for line in reversed(trainer.state.log_history) if "loss" in line)
    found = {"weights": weights, "resident": resident, "peak": _status("VmHWM")}
    return {**found, "seconds": times.seconds[1:], "loss": loss}


def _status(name: str) -> float:
    """GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024 / GIB


def as_text(found: dict[str, list[Figures]], command: str, width: int) -> str:
    first, rows = next(iter(found.values())), list[list[str]]()
    for way, runs in found.items():
        steps = [(step, other) for one, base in zip(runs, first, strict=True)
                 for step, other in zip(one["seconds"], base["seconds"], strict=True)]  # fmt: skip
        ratios = [step / other for step, other in steps]
        times = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        seconds = f"{statistics.median(step for step, _ in steps):.1f}"
        memory = [f"{max(each[name] for each in runs):.2f}" for name in ("weights", "resident", "peak")]
        rows.append([way, *memory, seconds, "1x" if runs is first else times, f"{runs[-1]['loss']:.4f}"])
    header = ["what", "weights, GiB", "resident after loading, GiB", "peak in training, GiB", "CPU seconds a step",
              "of the first", "loss"]  # fmt: skip
    about = (
        f"`{command}`; {platform.machine()}, one thread, torch {torch.__version__}. A LLaVA of random weights, 8 "
        f"layers of width {width}, saved in shards, rank 16 adapters, 576 visual tokens of which DART keeps 64 from "
        "layer 2, two rows a step. Weights: bytes of all parameters and buffers. Resident and peak are those of the "
        "process, its libraries included; weights in bf16 are pages of their files until they are read. Loss: of the "
        "last step, on the same rows."
    )
    return "\n\n".join(["# Quantized weights: memory and time of a step", about, markdown_table(header, rows)]) + "\n"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
