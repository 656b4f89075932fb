"""A training step under each backend on two ranks, and with quantized weights in one process, on the same rows.

    python -m launch.bench_backends --out data/results/benchmarks      # about four minutes on two cores

The runs are those of `train`: each is started anew, in turn, and the figures are read from its metrics.jsonl without
the first step. A LLaVA of random weights, 576 visual tokens, DART keeps 64 from layer 2.
"""

from __future__ import annotations

import argparse
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
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dart_train.common.io import free_port
from dart_train.common.tables import markdown_table

from .bench_preference import ROOT, make_model, make_rows

RECIPE = """
model: {{path: {folder}/model, dtype: float32}}
data: {{train: [{{path: {folder}/rows.json, images: {folder}/images}}], workers: 0, max_length: 4096}}
reduction: {{method: dart, keep: 64, layer: 2, schedule: {{kind: fixed}}}}
train: {{max_steps: {steps}, per_device_batch_size: 2, precision: fp32, gradient_checkpointing: false,
  logging_steps: 1, save_steps: 1000, learning_rate: 1.0e-4}}
log: {{report_to: []}}
"""
FULL = ["parts.projector={mode: full}", "parts.language={mode: full}"]
LORA = ["parts.projector={mode: frozen}", "parts.lora={rank: 16, dropout: 0.0}"]


@dataclass
class Way:
    name: str
    ranks: int
    overrides: list[str]
    step_seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    loss: float = 0.0


def ways() -> list[list[Way]]:
    """Groups whose first member is what the others are compared with."""
    backends = [
        Way("full fine-tuning, DeepSpeed ZeRO-2", 2, [*FULL, "train.zero_stage=2"]),
        Way("full fine-tuning, DeepSpeed ZeRO-3", 2, [*FULL, "train.zero_stage=3"]),
        Way("full fine-tuning, FSDP2", 2, [*FULL, "train.backend=fsdp2"]),
        Way("full fine-tuning, DDP", 2, [*FULL, "train.backend=ddp"]),
    ]
    quantized = [
        Way("LoRA, float32 weights", 1, [*LORA, "train.zero_stage=0"]),
        Way("LoRA, nf4 weights", 1, [*LORA, "train.zero_stage=0", "model.quantization=nf4"]),
    ]
    return [backends, quantized]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench_backends", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each (2)")
    parser.add_argument("--steps", type=int, default=6, help="of each run (6)")
    parser.add_argument("--width", type=int, default=1024, help="of the language model (1024)")
    parser.add_argument("--out", type=Path, help="folder for backends_cpu.json and backends_cpu.md")
    options = parser.parse_args(argv)
    groups = ways()
    folder = Path(tempfile.mkdtemp(prefix="bench_backends_"))
    try:
        prepare(folder, options)
        for number in range(options.rounds):
            for way in (way for group in groups for way in group):
                run(way, folder, number)
                print(f"{way.name}: {way.step_seconds[-1]:.2f} s a step", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = as_text(groups, f"python -m launch.bench_backends {shlex.join(argv)}", options.width)
    print(text)
    if options.out is not None:
        found = [[vars(way) for way in group] for group in groups]
        (options.out / "backends_cpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (options.out / "backends_cpu.md").write_text(text, encoding="utf-8")
    return 0


def prepare(folder: Path, options: argparse.Namespace) -> None:
    make_model(folder / "model", options.width)
    rows = make_rows(folder, 8)
    answered = [
        {"question": r["question"], "image": r["image"], "answer": r["chosen"]} for r in json.loads(rows.read_text())
    ]
    rows.write_text(json.dumps(answered))
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, steps=options.steps))


def run(way: Way, folder: Path, number: int) -> None:
    output = folder / f"{way.name.replace(' ', '_')}-{number}"
    train = [str(folder / "recipe.yaml"), *way.overrides, f"train.output_dir={output}"]
    command = [sys.executable, "-m", "dart_train", "train", *train]
    if way.ranks > 1:
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(way.ranks)]
        command = [*launcher, "--master_port", str(free_port()), str(ROOT / "launch" / "train.py"), *train]
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way.name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step_seconds" in line]
    way.step_seconds.append(statistics.median(line["step_seconds"] for line in steps[1:]))
    way.memory.append(max(line["peak_memory_gib"] for line in steps))
    way.loss = next(line["loss"] for line in reversed(lines) if "loss" in line)


def as_text(groups: list[list[Way]], command: str, width: int) -> str:
    rows = []
    for first, *others in groups:
        for way in (first, *others):
            ratios = [a / b for a, b in zip(first.step_seconds, way.step_seconds, strict=True)]
            faster = (
                "1x" if way is first else f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
            )
            seconds = f"{statistics.median(way.step_seconds):.2f}"
            rows.append([way.name, str(way.ranks), seconds, faster, f"{max(way.memory):.2f}", f"{way.loss:.4f}"])
    header = [
        "what",
        "ranks",
        "seconds a step",
        "faster than the first of its kind",
        "peak memory of a rank, GiB",
        "loss",
    ]
    about = (
        f"`{command}`; {platform.machine()}, {os.cpu_count()} cores, one thread a rank, torch {torch.__version__}. A "
        f"LLaVA of random weights, 8 layers of width {width}, 576 visual tokens of which DART keeps 64 from layer 2; "
        "two rows a rank and step. Loss: of the last step, the same rows in all runs of a kind. Memory is that of a "
        "process on a CPU, the libraries included."
    )
    return (
        "\n\n".join(["# Backends and quantized weights: a training step", about, markdown_table(header, rows)]) + "\n"
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
