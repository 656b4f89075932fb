"""A script, run in a fresh process that cannot import dart_train: the output of an exported folder there.

    python verify_process.py job.json

The job: {"folder", "base", "revision", "batch", "answer", "dtype", "attn_implementation", "device"}. base: the base
model of an adapter; None: the folder holds full weights. It writes `answer` (what loading reported, digests of the
weights) and `answer`.safetensors (logits and embeddings of the batch)."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.modules["dart_train"] = None  # type: ignore[assignment]  # importing it fails from here on

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

_LOADING_PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def load_exported(job: dict[str, Any]) -> tuple[Any, dict[str, list[str]]]:
    """The model, and the keys that loading reported as missing, unexpected or mismatched."""
    model, info = AutoModelForImageTextToText.from_pretrained(
        job["base"] or job["folder"],
        revision=job["revision"] if job["base"] else None,
        dtype=job["dtype"],
        attn_implementation=job["attn_implementation"],
        output_loading_info=True,
    )
    if job["base"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, job["folder"])
    problems = {name: sorted(map(str, info.get(name) or [])) for name in _LOADING_PROBLEMS}
    return model.eval().to(job["device"]), problems


@torch.no_grad()
def run_reference(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """{"logits": [B, L, V], "embeddings": [B, L, D]}: the output of the model, and the input of its decoder."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    captured: dict[str, torch.Tensor] = {}

    def capture(module: Any, args: Any, kwargs: Any) -> None:
        captured["embeddings"] = kwargs["inputs_embeds"].float().cpu()

    handle = plain.get_decoder().register_forward_pre_hook(capture, with_kwargs=True)
    try:
        logits = model(**batch).logits
    finally:
        handle.remove()
    return {"logits": logits.float().cpu(), **captured}


def weight_digests(model: Any) -> dict[str, str]:
    """{name: digest of its bytes, dtype and shape} of all weights."""
    return {name: _digest(tensor) for name, tensor in model.state_dict().items()}


def _digest(tensor: torch.Tensor) -> str:
    raw: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(raw, digest_size=16).hexdigest() + f" {tensor.dtype} {tuple(tensor.shape)}"


def main(job: dict[str, Any]) -> None:
    model, loading_problems = load_exported(job)
    batch = {name: tensor.to(job["device"]) for name, tensor in load_file(job["batch"]).items()}
    try:
        processor = type(AutoProcessor.from_pretrained(job["folder"])).__name__
    except (ImportError, ValueError, OSError) as error:
        processor = f"{type(error).__name__}: {error}"
    answer = {
        "loading_problems": loading_problems,
        "processor": processor,
        "generation": None if job["base"] else GenerationConfig.from_pretrained(job["folder"]).to_diff_dict(),
        "weights": None if job["base"] else weight_digests(model),
    }
    save_file(run_reference(model, batch), job["answer"] + ".safetensors")
    Path(job["answer"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
