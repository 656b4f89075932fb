"""The check of an export: a fresh process that cannot import dart_train must compute the numbers of the run."""

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
from ..conformance.measures import ragged_batch
from ..models.structure import unwrap_model
from . import verify_process

# The largest root mean square difference of logits, relative to their standard deviation, that rounding explains: the
# run adds the adapter's output to the base model's, the export rounds the sum of both weights. (That the merged weights
# are right is checked against float32 where they are made; that they are written is checked by digests here.)
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass
class ReferenceRun:
    """Logits and decoder inputs of the run's own model on a batch, and digests of the weights to be written."""

    batch: dict[str, Tensor]
    outputs: dict[str, Tensor]
    dtype: torch.dtype
    weights: dict[str, str] | None = None
    generation: dict[str, Any] = field(default_factory=dict)

    def record_weights(self, model: Any) -> None:
        self.weights = verify_process.weight_digests(model)
        self.generation = model.generation_config.to_diff_dict()


def run_reference(model: Any, processor: Any) -> ReferenceRun:
    """On a batch of two rows of different lengths with images."""
    model.to(_device())
    batch = ragged_batch(processor, unwrap_model(model))
    outputs = verify_process.run_reference(model, batch)
    return ReferenceRun({name: x.cpu().contiguous() for name, x in batch.items()}, outputs, unwrap_model(model).dtype)


def verify_export(
    folder: Path, found: ResolvedModel, reference: ReferenceRun, dtype: torch.dtype | str, adapter_only: bool
) -> float:
    """The difference of the logits, relative to their standard deviation. Raises RuntimeError with everything that
    differs more than rounding explains."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as scratch:
        job = _write_job(Path(scratch), folder, found, reference, dtype, adapter_only)
        _run_in_fresh_process(Path(scratch), job)
        answer = json.loads(Path(job["answer"]).read_text(encoding="utf-8"))
        outputs = load_file(job["answer"] + ".safetensors")
    wrong = [*_report_differences(answer, found, reference), *_output_differences(outputs, reference)]
    if wrong:
        raise RuntimeError("\n".join(["the exported model differs from the run's:", *(f"  {each}" for each in wrong)]))
    return _difference(outputs["logits"], reference.outputs["logits"], reference.batch)


def _write_job(
    scratch: Path,
    folder: Path,
    found: ResolvedModel,
    reference: ReferenceRun,
    dtype: torch.dtype | str,
    adapter_only: bool,
) -> dict[str, Any]:
    save_file(reference.batch, scratch / "batch.safetensors")
    base: str | None = None
    if adapter_only:  # a folder, for a process with another working directory, or a hub id
        base = str(Path(found.source.path).absolute()) if Path(found.source.path).exists() else found.source.path
    job = {
        "folder": str(folder.absolute()),
        "base": base,
        "revision": found.source.revision,
        "batch": str(scratch / "batch.safetensors"),
        "answer": str(scratch / "answer.json"),
        "dtype": str(dtype).removeprefix("torch."),
        "attn_implementation": found.attn_implementation,
        "device": _device(),
    }
    (scratch / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return job


def _run_in_fresh_process(scratch: Path, job: dict[str, Any]) -> None:
    """A copy of the script in an empty folder: nothing next to it can be imported by accident."""
    script = shutil.copy(str(verify_process.__file__), scratch / "verify_process.py")
    command = [sys.executable, str(script), str(scratch / "job.json")]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}  # the export is a folder, and its base was read by this process
    done = subprocess.run(command, cwd=scratch, env=offline, capture_output=True, text=True, check=False)
    if done.returncode:
        last_lines = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise RuntimeError(f"the export could not be loaded in a fresh process:\n{last_lines}")


def _report_differences(answer: dict[str, Any], found: ResolvedModel, reference: ReferenceRun) -> list[str]:
    problems = answer["loading_problems"]
    wrong = [f"{kind.replace('_', ' ')}: {', '.join(names[:3])}" for kind, names in problems.items() if names]
    processor = type(found.processor).__name__
    if answer["processor"] != processor and is_torchvision_available():  # without it, some load as a tokenizer only
        wrong.append(f"AutoProcessor loads a {answer['processor']}, expected a {processor}")
    if reference.weights is None:
        return wrong
    names = reference.weights.keys() | answer["weights"].keys()
    differing = sorted(name for name in names if reference.weights.get(name) != answer["weights"].get(name))
    if differing:
        wrong.append(f"weights that differ or are missing: {', '.join(differing[:3])}")
    if answer["generation"] != reference.generation:
        wrong.append("the generation config differs")
    return wrong


def _output_differences(outputs: dict[str, Tensor], reference: ReferenceRun) -> list[str]:
    allowed, wrong = _TOLERANCE[reference.dtype], []
    for name in ("embeddings", "logits"):
        difference = _difference(outputs[name], reference.outputs[name], reference.batch)
        if not difference <= allowed:  # NaN too
            wrong.append(
                f"{name} differ by {difference:.2g} of their standard deviation; rounding explains {allowed:g}"
            )
    return wrong


def _difference(one: Tensor, other: Tensor, batch: dict[str, Tensor]) -> float:
    """Root mean square difference of [B, L, ...] over tokens that are not padding, relative to the standard
    deviation."""
    real = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones(one.shape[:2], dtype=torch.bool)
    one, other = one[real], other[real]
    deviation = other.std().clamp_min(torch.finfo(torch.float32).tiny)
    return float((one - other).pow(2).mean().sqrt() / deviation)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
