"""The tiny recipe with ZeRO 2 in bf16, fp16 and LoRA on the device, its losses against a CPU's in float32.

All runs start at once: they are small, and the CPU's take no time of the GPU. Writes losses.json, figures.txt and the
log of each run; exits with 1 when a run fails or its losses are too far from the CPU's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dart_train.common.io import free_port

from .running import run_command

LORA = ["parts.vision.mode=frozen", "parts.language.mode=lora", "parts.lora.dropout=0.0"]
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "4"}
# Of the loss, against float32 on a CPU: at the first step, where nothing is trained or dropped yet, and its mean over
# all steps. In bf16 on a CPU they differ by 0.7% and 2.5% (LoRA: 0.7% and 0.3%). Single steps differ by more: where
# roundings choose other tokens, the loss is another one. fp16 also skips steps until its loss scale fits.
FIRST_STEP, MEAN = 0.02, 0.10
ENOUGH_STEPS = 20  # for a meaningful mean


@dataclass(frozen=True)
class Run:
    name: str
    reference: str | None  # the run on the CPU that its losses are compared with; None: it is one
    overrides: list[str]


RUNS = [
    Run("cpu_fp32", None, ["train.precision=fp32"]),
    Run("cpu_lora_fp32", None, ["train.precision=fp32", *LORA]),
    Run("bf16", "cpu_fp32", ["train.precision=bf16"]),
    Run("fp16", "cpu_fp32", ["train.precision=fp16"]),
    Run("lora_bf16", "cpu_lora_fp32", ["train.precision=bf16", *LORA]),
]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.gpu.training", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--limit", type=float, default=100.0, help="seconds of each run")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    out = options.out.resolve()
    draw_data(out / "data", rows=6 * options.steps)
    runs = RUNS if options.device == "cuda" else [run for run in RUNS if run.name != "fp16"]
    with ThreadPoolExecutor(len(runs) if options.device == "cuda" else 2) as pool:
        codes = list(pool.map(lambda run: train(run, out, options), runs))
    losses = {run.name: read_losses(out / run.name / "metrics.jsonl") for run in runs}
    lines, good = compare(runs, losses, options.steps)
    for run, code in zip(runs, codes, strict=True):
        if code:
            lines.append(f"{run.name} failed with exit code {code}: " + last_line(out / f"{run.name}.log"))
    if options.device == "cpu":
        lines.append("fp16: not run, it needs a GPU")
    (out / "losses.json").write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")
    (out / "figures.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0 if good and not any(codes) else 1


def draw_data(folder: Path, rows: int) -> None:
    """One conversation per image; an image for each row of each step."""
    command = [sys.executable, "data/shapes.py", "--out", str(folder), "--train", str(rows), "--validation", "1"]
    subprocess.run([*command, "--group"], check=True, capture_output=True)


def train(run: Run, out: Path, options: argparse.Namespace) -> int:
    data = out / "data"
    common = [
        f"data.train=[{{path: {data}/train.json, images: {data}/images}}]",
        "data.validation=[]",
        f"train.output_dir={out / run.name}",
        f"train.max_steps={options.steps}",
        "train.zero_stage=2",
        "train.logging_steps=1",
        "train.save_steps=100000",
        "model.attn_implementation=sdpa",
        "data.workers=0",
    ]
    if run.reference is None:
        launcher, env = [sys.executable], ON_CPU
    else:
        launcher, env = ["deepspeed", "--num_gpus", "1", "--master_port", str(free_port())], {"OMP_NUM_THREADS": "2"}
    if options.device == "cpu":
        env = {**env, "OMP_NUM_THREADS": "1"}
    command = [*launcher, "launch/train.py", "recipes/tiny_dart.yaml", *run.overrides, *common]
    with (out / f"{run.name}.log").open("w", encoding="utf-8") as log:
        code, timed_out = run_command(command, options.limit, log, env)
        if timed_out:
            log.write(f"ended after {options.limit:.0f} s\n")
    return code or int(timed_out)


def read_losses(metrics: Path) -> list[float]:
    if not metrics.exists():
        return []
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def compare(runs: list[Run], losses: dict[str, list[float]], steps: int) -> tuple[list[str], bool]:
    """One line for each run on the device, and whether all are complete and close to the CPU's."""
    lines, good = [], True
    for run in runs:
        if run.reference is None:
            continue
        pairs = list(zip(losses[run.name], losses[run.reference], strict=False))
        if len(pairs) < steps:
            lines.append(f"{run.name}: {len(pairs)} of {steps} steps to compare with {run.reference}")
            good = False
            continue
        first = abs(pairs[0][0] / pairs[0][1] - 1)
        ours, theirs = (statistics.fmean(pair[side] for pair in pairs) for side in (0, 1))
        mean = abs(ours / theirs - 1)
        close = first <= FIRST_STEP and (mean <= MEAN or steps < ENOUGH_STEPS)
        good = good and close
        lines.append(
            f"{run.name}: {steps} steps, mean loss {ours:.4g} ({run.reference}: {theirs:.4g}), difference {mean:.2%} "
            f"(allowed {MEAN:.0%}); at the first step {first:.2%} (allowed {FIRST_STEP:.0%})"
            + ("" if close else ": TOO FAR")
        )
    return lines, good


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "its log is empty"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
