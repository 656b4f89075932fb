"""CPU time of a DPO or GRPO step with the reduction on, next to the same step at full tokens, on the same rows.

    python -m launch.bench_preference --out data/results/benchmarks

One process runs `train` for both in turn (reduced, full, reduced, full, ...), on a LLaVA of random weights with 576
visual tokens, a sixteenth of the width of LLaVA-1.5-7B, and drawn images. The time of a step is that of the process on
its cores, so that other work on the machine changes it little; the first step of each run is left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, TrainerCallback, set_seed

from dart_train.config import load_recipe
from dart_train.training.preference import run as preference_run

KEEP, LAYER, STEPS = 64, 2, 3
ROOT = Path(__file__).resolve().parents[1]
QUESTION = "What is written on the red plate?"
WAYS = {"reduced": f"{{method: dart, keep: {KEEP}, layer: {LAYER}, schedule: {{kind: fixed}}}}", "full": "none"}
RECIPE = """
model: {{path: {model}, dtype: float32}}
data: {{train: [{{path: {rows}, images: {images}}}], workers: 0, max_length: 4096}}
parts: {{projector: {{mode: frozen}}, lora: {{rank: 16, dropout: 0.0}}}}
train: {{method: {method}, max_steps: {steps}, per_device_batch_size: {batch}, precision: fp32, zero_stage: 0,
  gradient_checkpointing: false, logging_steps: 1, save_steps: 1000, learning_rate: 1.0e-6}}
"""


class StepTimes(TrainerCallback):
    """CPU seconds of each step, rollouts included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.began = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.process_time() - self.began)


def reward(completions: list[Any], **columns: Any) -> list[float]:
    return [float(i % 4) for i, _ in enumerate(completions)]


def make_model(folder: Path, width: int = 256) -> None:
    """Tokenizer and template of data/tiny_base, with images of 336 pixels in patches of 14."""
    shutil.copytree(ROOT / "data" / "tiny_base", folder, ignore=shutil.ignore_patterns("*.safetensors", "train"))
    file = folder / "processor_config.json"
    processor = json.loads(file.read_text())
    processor["image_processor"] |= {"crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336}}
    file.write_text(json.dumps(processor | {"patch_size": 14}))
    config: Any = LlavaConfig.from_pretrained(folder)
    text = {"hidden_size": width, "intermediate_size": width * 43 // 16, "num_hidden_layers": 8,
            "num_attention_heads": width // 64, "num_key_value_heads": width // 64, "head_dim": 64,
            "max_position_embeddings": 4096}  # fmt: skip
    vision = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 2,
              "image_size": 336, "patch_size": 14}  # fmt: skip
    for part, sizes in ((config.text_config, text), (config.vision_config, vision)):
        for name, value in sizes.items():
            setattr(part, name, value)
    config.image_seq_length = 576
    set_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)


def make_rows(folder: Path, number: int) -> Path:
    images = folder / "images"
    images.mkdir()
    rows = []
    for i in range(number):
        noise = torch.randint(0, 255, (12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(noise.numpy()).resize((336, 336)).save(images / f"{i}.png")
        row = {"question": QUESTION, "image": f"{i}.png", "chosen": "the red plate is on the left " * 2}
        rows.append(row | {"rejected": "the blue plate is on the right " * 2})
    file = folder / "rows.json"
    file.write_text(json.dumps(rows))
    return file


def measure(method: str, folder: Path, rounds: int) -> dict[str, Any]:
    batch = {"dpo": 2, "grpo": 8}[method]
    rows, recipe = folder / "rows.json", folder / f"{method}.yaml"
    recipe.write_text(RECIPE.format(model=folder / "model", rows=rows, images=folder / "images", method=method,
                                    steps=STEPS, batch=batch))  # fmt: skip
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way, reduction in WAYS.items():
            more = [f"reduction={reduction}", f"train.output_dir={folder / f'{method}-{way}-{number}'}"]
            if method == "grpo":
                more += ["preference.rewards=launch.bench_preference:reward", "preference.num_generations=4"]
                more += ["preference.max_completion_length=32", "preference.trl={mask_truncated_completions: false}"]
            times = StepTimes()
            with mock.patch.object(preference_run, "build", partial(_build_timed, preference_run.build, times)):
                preference_run.run_preference(load_recipe(recipe, more))
            seconds[way] += times.seconds[1:]
    ratios = [full / reduced for reduced, full in zip(seconds["reduced"], seconds["full"], strict=True)]
    return {"method": method, "rows": batch, "seconds": seconds, "ratios": ratios}


def _build_timed(build: Any, times: StepTimes, *given: Any) -> Any:
    trainer = build(*given)
    trainer.add_callback(times)
    return trainer


def as_text(found: list[dict[str, Any]], command: str) -> str:
    lines = [
        "# Preference training: CPU time of a step\n",
        f"`{command}`; {platform.machine()}, one thread, torch {torch.__version__}. A LLaVA of random weights, 8 "
        f"layers of width 256, 576 visual tokens; DART keeps {KEEP} from layer {LAYER}; LoRA on the decoder. DPO: 2 "
        "pairs, policy and reference. GRPO: 8 rollouts of 32 tokens at most, and one update. The ratio is that of "
        "steps on the same rows in one process, median and range.\n",
        "| method | full, CPU s a step | reduced, CPU s a step | faster |",
        "|---|---|---|---|",
    ]
    for each in found:
        full, reduced = (statistics.median(each["seconds"][way]) for way in ("full", "reduced"))
        ratios = each["ratios"]
        span = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} steps)"
        lines.append(f"| {each['method']} | {full:.2f} | {reduced:.2f} | {span} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=["dpo", "grpo"], default=["dpo", "grpo"])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way, in turn (3)")
    parser.add_argument("--out", type=Path, help="folder for preference_cpu.md and .json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        make_rows(folder, 24)
        found = [measure(method, folder, options.rounds) for method in options.methods]
    text = as_text(found, "python -m launch.bench_preference" + f" --rounds {options.rounds}")
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "preference_cpu.md").write_text(text, encoding="utf-8")
        (options.out / "preference_cpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
