"""The proof of an export: a fresh process, in which this package cannot be imported, gives the run's own numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import is_torchvision_available

from ..checkpoints import ResolvedModel
from ..conformance import ragged_batch
from ..models.structure import unwrap_model
from . import verify_process as fresh

# How far rounding may carry logits, as a share of their spread: the run adds an adapter's output to a rounded one of
# the base model, the export rounds the sum of both weights. (That the sum itself is right is held against float32,
# weight by weight, where it is made; that it arrives is held against digests here.)
_ROUNDING = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass
class Expected:
    """What the run's own model gives for a batch: decoder inputs, logits, and the weights to be written."""

    batch: dict[str, Tensor]
    seen: dict[str, Tensor]
    dtype: torch.dtype
    weights: dict[str, str] | None = None
    generation: dict[str, Any] = field(default_factory=dict)

    def remember(self, model: Any) -> None:
        self.weights = fresh.digests(model)
        self.generation = model.generation_config.to_diff_dict()


def expect(model: Any, processor: Any) -> Expected:
    """Two questions on two pictures, padded: through vision tower, projector and language model."""
    model.to(_device())
    batch = ragged_batch(processor, unwrap_model(model))
    seen = fresh.seen(model, batch)
    return Expected({name: x.cpu().contiguous() for name, x in batch.items()}, seen, unwrap_model(model).dtype)


def prove(
    folder: Path, found: ResolvedModel, expected: Expected, dtype: torch.dtype | str, adapter_only: bool
) -> float:
    """How far the logits are apart, as a share of their spread. Raises RuntimeError with all that differs."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as room:
        job = _job(Path(room), folder, found, expected, dtype, adapter_only)
        _run(Path(room), job)
        told = json.loads(Path(job["answer"]).read_text(encoding="utf-8"))
        seen = load_file(job["answer"] + ".safetensors")
    wrong = [*_told_wrong(told, found, expected), *_seen_wrong(seen, expected)]
    if wrong:
        raise RuntimeError("\n".join(["the export does not give what the run gives:", *(f"  {w}" for w in wrong)]))
    return _apart(seen["logits"], expected.seen["logits"], expected.batch)


def _job(
    room: Path, folder: Path, found: ResolvedModel, expected: Expected, dtype: torch.dtype | str, adapter_only: bool
) -> dict[str, Any]:
    save_file(expected.batch, room / "batch.safetensors")
    return {
        "folder": str(folder.absolute()),
        "base": _base(found) if adapter_only else None,
        "revision": found.source.revision,
        "batch": str(room / "batch.safetensors"),
        "answer": str(room / "answer.json"),
        "dtype": str(dtype).removeprefix("torch."),
        "kernel": found.attn_implementation,
        "device": _device(),
    }


def _base(found: ResolvedModel) -> str:
    """A folder, wherever the process runs, or a hub id."""
    path = Path(found.source.path)
    return str(path.absolute()) if path.exists() else found.source.path


def _run(room: Path, job: dict[str, Any]) -> None:
    """In a folder of its own, so that nothing lies beside it that could be imported by chance."""
    script = shutil.copy(str(fresh.__file__), room / "fresh.py")
    (room / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, str(script), str(room / "job.json")]
    done = subprocess.run(command, cwd=room, env={**os.environ}, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise RuntimeError(f"the export could not be loaded in a fresh process:\n{last}")


def _told_wrong(told: dict[str, Any], found: ResolvedModel, expected: Expected) -> list[str]:
    wrong = [f"{what.replace('_', ' ')}: {', '.join(names[:3])}" for what, names in told["info"].items() if names]
    kind = type(found.processor).__name__
    if told["processor"] != kind and is_torchvision_available():  # without it, some come as a mere tokenizer
        wrong.append(f"AutoProcessor gives a {told['processor']}, not the {kind}")
    if expected.weights is None:
        return wrong
    names = expected.weights.keys() | told["weights"].keys()
    other = sorted(name for name in names if expected.weights.get(name) != told["weights"].get(name))
    wrong += [f"weights that differ or are missing: {', '.join(other[:3])}"] * bool(other)
    return wrong + ["the generation config differs"] * (told["generation"] != expected.generation)


def _seen_wrong(seen: dict[str, Tensor], expected: Expected) -> list[str]:
    allowed = _ROUNDING[expected.dtype]
    apart = {name: _apart(seen[name], expected.seen[name], expected.batch) for name in ("embeddings", "logits")}
    return [
        f"{name} differ by {far:.2g} of their spread, {allowed:g} is rounding"
        for name, far in apart.items()
        if not far <= allowed
    ]


def _apart(one: Tensor, other: Tensor, batch: dict[str, Tensor]) -> float:
    """The root mean square of the difference, as a share of the spread, over all tokens that are no padding."""
    real = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones(one.shape[:2], dtype=torch.bool)
    one, other = one[real], other[real]
    spread = other.std().clamp_min(torch.finfo(torch.float32).tiny)
    return float((one - other).pow(2).mean().sqrt() / spread)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
