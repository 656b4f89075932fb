"""What runs, in which order, and for how long at most. The limits add up to less than eight minutes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from .figures import bench_figures, file_figures, laws_figures, select_figures
from .running import Stage

# Seconds on one H100 or H200. A process takes about 10 of them to import everything, a 7B model with random weights
# about 5 to build, and each benchmark about 5 to measure the device's best FLOPs and bytes a second.
LIMITS = {
    "laws": 80,
    "train": 110,
    "prefill": 50,
    "step": 65,
    "decode": 40,
    "select": 30,
    "distill": 50,
    "profile": 50,
}
DRY_LIMIT = 180  # of each stage on a CPU, which may be busy
GIB = 1 << 30
NO_CHECKPOINTING_GIB = 100  # 16 rows of 640 tokens through 7B keep about 75 GiB of activations
FUSED = "dart_train.kernels.fused_dart:FusedDART"
WAYS = ["full tokens", "keep-all attached", "DART"]


@dataclass(frozen=True)
class Settings:
    """scale: of the 7B models; memory: bytes of the GPU."""

    device: str
    scale: float
    out: Path
    memory: int

    @property
    def dry(self) -> bool:
        return self.device == "cpu"


def all_stages(settings: Settings) -> list[Stage]:
    return [
        _stage(settings, "laws", "the laws in bfloat16, and no synchronisation in a step", _laws(settings)),
        _stage(
            settings, "train", "the tiny recipe with ZeRO 2 in bf16, fp16 and LoRA, against a CPU", _train(settings)
        ),
        _stage(settings, "prefill", "prefill of LLaVA-NeXT-7B, 2,928 -> 320 visual tokens", _prefill(settings)),
        _stage(settings, "step", "LoRA step of LLaVA-1.5-7B, 16 rows, 576 -> 64 visual tokens", _step(settings)),
        _stage(settings, "decode", "decoding after a reduced prefill of LLaVA-NeXT-7B", _decode(settings)),
        _stage(settings, "select", "the selection alone, against one decoder layer", _select(settings)),
        _stage(settings, "distill", "a LoRA step with a teacher, against the student's alone", _distill(settings)),
        _stage(settings, "profile", "a profile of a reduced training step and a prefill", _profile(settings)),
    ]


def _stage(settings: Settings, name: str, what: str, command: list[str]) -> Stage:
    figures = {"laws": laws_figures, "train": file_figures, "profile": file_figures, "select": select_figures}
    limit = DRY_LIMIT if settings.dry else LIMITS[name]
    return Stage(name, what, limit, [sys.executable, "-m", *command], figures.get(name, bench_figures))


def _laws(settings: Settings) -> list[str]:
    """Without a GPU, the tests of the folder that need none run, and the others say why they were skipped."""
    chosen = [] if settings.dry else ["-m", "gpu"]
    results = settings.out / "laws" / "results.xml"
    return ["pytest", *chosen, "tests/gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={results}"]


def _train(settings: Settings) -> list[str]:
    steps = "2" if settings.dry else "50"
    return ["launch.gpu.training", "--device", settings.device, "--steps", steps, "--out", str(settings.out / "train")]


def _bench(settings: Settings, name: str, repeats: int, seconds: float, *more: str) -> list[str]:
    """repeats: the fewest that give a spread; seconds: what one way may take in all of them."""
    if settings.dry:
        repeats, seconds = 1, 1.0
    rounds = ["--device", settings.device, "--repeats", str(repeats), "--seconds", str(seconds)]
    sized = [] if name == "select" else ["--scale", f"{settings.scale:g}"]
    return ["dart_train", "bench", name, *rounds, *sized, "--out", str(settings.out / name), *more]


def _prefill(settings: Settings) -> list[str]:
    return _bench(settings, "prefill", 7, 5.0, "--models", _long(settings), "--ways", *WAYS)


def _step(settings: Settings) -> list[str]:
    rows = "1" if settings.dry else "16"
    layers_again = [] if settings.dry or settings.memory >= NO_CHECKPOINTING_GIB * GIB else ["--checkpointing"]
    lora = ["--models", "llava", "--modes", "lora", "--rows", rows]
    return _bench(settings, "step", 5, 10.0, *lora, *layers_again, "--ways", *WAYS)


def _decode(settings: Settings) -> list[str]:
    return _bench(settings, "decode", 7, 5.0, "--models", _long(settings), "--ways", *WAYS)


def _long(settings: Settings) -> str:
    """2,928 visual tokens; a dry run takes the model of 576."""
    return "llava" if settings.dry else "llava_next"


def _select(settings: Settings) -> list[str]:
    sizes = ["--tokens", "144", "--width", "256"] if settings.dry else ["--tokens", "576", "2880", "--width", "4096"]
    return _bench(settings, "select", 9, 3.0, *sizes, "--batch", "1", "--methods", "dart", FUSED)


def _distill(settings: Settings) -> list[str]:
    rows = "1" if settings.dry else "4"  # fits 80 GB without checkpointing, teacher of all tokens included
    return _bench(settings, "distill", 3, 6.0, "--models", "llava", "--modes", "lora", "--rows", rows)


def _profile(settings: Settings) -> list[str]:
    out = str(settings.out / "profile")
    return ["launch.gpu.profile", "--device", settings.device, "--scale", f"{settings.scale:g}", "--out", out]
