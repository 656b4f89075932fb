"""A profile of one reduced LoRA step and of one prefill, reduced and plain, of a LLaVA-1.5-7B with random weights.

Writes step.trace.json.gz, prefill.trace.json.gz, plain.trace.json.gz (for chrome://tracing or Perfetto),
profile.md with the longest kernels, and figures.txt.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from dart_train import DART, View, attach

from .trace import Summary, summarize

SELECTION = "dart_selection"
IMAGE, IMAGE_TOKENS, BEFORE, AFTER, ANSWER = 5, 576, 4, 36, 24  # an id, and numbers of tokens
KEPT, LAYER = 64, 2  # of an image's tokens, from this layer on
LINEAR = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


@dataclass(frozen=True, kw_only=True)
class MarkedDART(DART):
    """DART, with a range in the trace around the selection."""

    def select(self, view: View) -> Tensor:
        with record_function(SELECTION):
            return super().select(view)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.gpu.profile", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    device, out = torch.device(options.device), options.out
    out.mkdir(parents=True, exist_ok=True)
    rows, images = (16, 5) if device.type == "cuda" else (1, 1)

    model = build_model(options.scale, device)
    prefill, step = inputs(model, 1, images, 0), inputs(model, rows, 1, ANSWER)
    kept, visual = images * KEPT, images * IMAGE_TOKENS
    done = {
        f"prefill, {visual} -> {kept}": profiled(
            prefill_of(model, prefill, kept), device, out / "prefill.trace.json.gz"
        ),
        f"plain prefill, {visual}": profiled(prefill_of(model, prefill, None), device, out / "plain.trace.json.gz"),
        f"LoRA step, {rows} rows, {IMAGE_TOKENS} -> {KEPT}": profiled(
            training_step_of(model, step, KEPT), device, out / "step.trace.json.gz"
        ),
    }
    word = "launches" if device.type == "cuda" else "operators"
    lines = [figure(name, summary, word) for name, summary in done.items()]
    reduced, plain = (summary.launches for summary in list(done.values())[:2])
    lines.insert(1, f"{word} that the reduction adds to a prefill: {reduced - plain}")
    (out / "figures.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tables = "\n\n".join(f"## {name}\n\n{summary.table()}" for name, summary in done.items())
    (out / "profile.md").write_text("\n".join(f"- {line}" for line in lines) + f"\n\n{tables}\n", encoding="utf-8")
    print((out / "profile.md").read_text(encoding="utf-8"))
    return 0


def figure(name: str, summary: Summary, word: str) -> str:
    text = f"{name}: {summary.wall_seconds * 1e3:.4g} ms without the profiler, {summary.launches} {word}"
    if not summary.selections:
        return text
    return (
        f"{text}; the selection is {summary.selection_seconds / summary.seconds:.2%} of it by kernel time "
        f"({summary.selection_seconds * 1e3:.3g} ms), {summary.selection_launches} {word}; "
        f"the host spends {summary.selection_host_seconds * 1e3:.3g} ms there"
    )


def build_model(scale: float, device: torch.device) -> Any:
    """scale: fewer heads of the same size, and fewer layers, but at least four."""
    heads, seen = max(1, round(32 * scale)), max(1, round(16 * scale))
    depth, tower = (max(4, math.ceil(layers * math.sqrt(scale))) for layers in (32, 24))
    text = {
        "model_type": "llama",
        "hidden_size": 128 * heads,
        "intermediate_size": 344 * heads,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": max(1024, round(32064 * scale)),
        "pad_token_id": 0,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 64 * seen,
        "intermediate_size": 256 * seen,
        "num_hidden_layers": tower,
        "num_attention_heads": seen,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 48 * seen,
    }
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        torch.manual_seed(0)
        return hf.LlavaForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def inputs(model: Any, rows: int, images: int, answer: int) -> dict[str, Tensor]:
    """On the host; random words and pixels. No mask, as nothing is padded: to look into one, the model would wait."""
    torch.manual_seed(0)
    visual = images * IMAGE_TOKENS
    ids = torch.randint(9, model.config.text_config.vocab_size, (rows, BEFORE + visual + AFTER + answer))
    ids[:, BEFORE : BEFORE + visual] = IMAGE
    batch = {"input_ids": ids, "pixel_values": torch.rand(rows * images, 3, 336, 336)}
    if answer:
        batch["labels"] = torch.full_like(ids, -100)
        batch["labels"][:, -answer:] = ids[:, -answer:]
    return batch


def on_device(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.to(model.device, model.dtype if x.is_floating_point() else x.dtype) for name, x in batch.items()}


def prefill_of(model: Any, host: dict[str, Tensor], keep: int | None) -> tuple[Callable[[], object], Any]:
    """What runs, and the context that it runs in."""
    batch = on_device(model, host)
    attached = None if keep is None else attach(model, MarkedDART(keep=keep, layer=LAYER))

    @torch.no_grad()
    def run() -> object:
        if attached is not None:
            attached.prefetch_batch(host["input_ids"])
        return model(**batch, use_cache=True, logits_to_keep=1)

    return run, attached or nullcontext()


def training_step_of(model: Any, host: dict[str, Tensor], keep: int) -> tuple[Callable[[], object], Any]:
    adapted = get_peft_model(model, LoraConfig(r=128, lora_alpha=256, target_modules=LINEAR)).train()
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-9, fused=model.device.type == "cuda")
    batch, attached = on_device(model, host), attach(adapted, MarkedDART(keep=keep, layer=LAYER), output="compact")

    def run() -> None:
        attached.prefetch_batch(host["input_ids"], labels=host["labels"])
        adapted(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run, attached


def profiled(work: tuple[Callable[[], object], Any], device: torch.device, file: Path) -> Summary:
    """Twice to warm up, once for the time, once for the trace."""
    run, around = work
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    with around:
        run()
        run()
        wait()
        started = time.perf_counter()
        run()
        wait()
        seconds = time.perf_counter() - started
        with profile(activities=activities) as profiler:
            run()
            wait()
    profiler.export_chrome_trace(str(file))
    return summarize(file, SELECTION, seconds)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
