"""A small run to train on: a tiny model's folder, rows with two, one and no pictures, and a recipe over both."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dart_train.train.log.metrics import read_metrics
from tests.zoo import picture, save_folder, sentence

ROOT = Path(__file__).parents[2]
PICTURES = (1, 0, 2, 1, 0, 0, 1, 2)  # of the rows, over and over
RECIPE = """
model: {{path: {model}}}
reduction: {{method: dart, keep: 0.25, layer: 2}}
data:
  train: [{{path: {rows}, images: {images}}}]
  workers: 0
parts: {{lora: {{rank: 4, dropout: 0.0}}}}
train:
  output_dir: {run}
  max_steps: 10
  per_device_batch_size: 8
  precision: fp32
  gradient_checkpointing: false
  logging_steps: 1
  save_steps: 1000
  learning_rate: 1e-3
  warmup_ratio: 0.0
"""


def make_rows(folder: Path, number: int = 24) -> Path:
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(number):
        names = [f"{i}-{n}.png" for n in range(PICTURES[i % len(PICTURES)])]
        for n, name in enumerate(names):
            picture(10 * i + n).save(images / name)
        question = "<image>\n" * len(names) + sentence(3 + i % 4, i)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": sentence(1 + i % 3, 900 + i)}]
        rows.append({"id": str(i), "image": names, "conversations": turns} if names else {"conversations": turns})
    file = folder / "rows.json"
    file.write_text(json.dumps(rows))
    return file


def make_recipe(folder: Path, family: str = "llava") -> Path:
    """recipe.yaml in `folder`, with everything that it names."""
    model = folder / family
    if not model.exists():
        save_folder(family, model)
        make_rows(folder)
    file, rows = folder / f"{family}.yaml", folder / "rows.json"
    text = RECIPE.format(model=model, rows=rows, images=folder / "images", run=folder / "run")
    file.write_text(text)
    return file


def losses(run: Path) -> list[dict[str, Any]]:
    """The lines of training steps."""
    return [line for line in read_metrics(run) if "loss" in line]


def launch(script: Path, *arguments: str, timeout: float = 300, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """The real DeepSpeed launcher, on CPU ranks."""
    port = free_port()
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)]
    command += ["--master_port", str(port), str(script), *arguments]
    done = run(command, timeout)
    assert not shared_memory(port), "DeepSpeed's buffers are left behind"
    return done


def shared_memory(port: int) -> list[Path]:
    """What the ranks that met at this port hold under a name."""
    return sorted(Path("/dev/shm").glob(f"deepspeed_*_{port}_*"))


def run(command: Sequence[str], timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        command,
        env={**os.environ, **settings, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as began:
        try:
            out, err = began.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(began.pid, signal.SIGKILL)  # ranks and launcher too, which outlive the command
            raise
    return subprocess.CompletedProcess(command, began.returncode, out, err)


def free_port() -> int:
    """Below the ports that systems hand out: a launcher binds it only after a while, and until then no outgoing
    connection of another process may get it."""
    chance = random.Random()
    for port in chance.sample(range(15_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port among 100 tried from 15000 to 31999")
