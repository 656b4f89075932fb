"""Run on its own in a fresh process that has never heard of this package: what an exported folder gives there.

    python fresh.py job.json

The job: {"folder", "base", "revision", "batch", "answer", "dtype", "kernel", "device"}; base: None: whole weights."""

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


def read(job: dict[str, Any]) -> tuple[Any, dict[str, list[str]]]:
    """The model, and what loading it had to say."""
    source = job["base"] or job["folder"]
    model, info = AutoModelForImageTextToText.from_pretrained(
        source,
        revision=job["revision"] if job["base"] else None,
        dtype=job["dtype"],
        attn_implementation=job["kernel"],
        output_loading_info=True,
    )
    if job["base"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, job["folder"])
    told = {
        name: sorted(map(str, info.get(name) or [])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    return model.eval().to(job["device"]), told


def seen(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """{"logits", "embeddings"}: what comes out of the model, and what goes into its decoder."""
    whole, caught = model.get_base_model() if hasattr(model, "get_base_model") else model, dict[str, torch.Tensor]()

    def catch(module: Any, args: Any, kwargs: Any) -> None:
        caught["embeddings"] = kwargs["inputs_embeds"].float().cpu()

    handle = whole.get_decoder().register_forward_pre_hook(catch, with_kwargs=True)
    with torch.no_grad():
        logits = model(**batch).logits
    handle.remove()
    return {"logits": logits.float().cpu(), **caught}


def digests(model: Any) -> dict[str, str]:
    """{name: digest of its bytes} of all weights."""
    return {name: digest(tensor) for name, tensor in model.state_dict().items()}


def digest(tensor: torch.Tensor) -> str:
    raw: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(raw, digest_size=16).hexdigest() + f" {tensor.dtype} {tuple(tensor.shape)}"


def main(job: dict[str, Any]) -> None:
    model, info = read(job)
    batch = {name: tensor.to(job["device"]) for name, tensor in load_file(job["batch"]).items()}
    try:
        processor = type(AutoProcessor.from_pretrained(job["folder"])).__name__
    except (ImportError, ValueError, OSError) as error:
        processor = f"{type(error).__name__}: {error}"
    generation = None if job["base"] else GenerationConfig.from_pretrained(job["folder"]).to_diff_dict()
    told = {
        "info": info,
        "processor": processor,
        "generation": generation,
        "weights": None if job["base"] else digests(model),
    }
    save_file(seen(model, batch), job["answer"] + ".safetensors")
    Path(job["answer"]).write_text(json.dumps(told))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
