"""Finished runs over one tiny model, made once for all who look at what a run leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dart_train import train
from dart_train.attach.anatomy import unwrap
from tests.train.scene import make_recipe
from tests.zoo import make_batch

SHORT = ["train.per_device_batch_size=2", "train.max_steps=4", "train.save_steps=2", "train.learning_rate=1e-2"]
FULL = ["parts.vision={mode: full}", "parts.language={mode: full}"]
ELASTIC = "schedule: {kind: elastic, choices: [1.0, 0.5, 0.25]}"
KINDS = {
    "lora": ["parts.vision={mode: lora}"],
    "full": FULL,
    "half": ["train.precision=bf16"],
    "plain": ["reduction=none"],
    "fixed": ["reduction={method: dart, keep: 8, layer: 2, schedule: {kind: fixed}}"],
    "staged": ["reduction=[{method: dart, keep: 0.5, layer: 1}, {method: random, keep: 0.25, layer: 3}]"],
}
Runs = Callable[[str], Path]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The folder of a finished run of one of KINDS. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("runs")

    def made(kind: str) -> Path:
        run = folder / kind
        if not run.exists():
            recipe = make_recipe(folder)
            trained_at = f"reduction={{method: dart, keep: 0.25, layer: 2, {ELASTIC}}}"
            train(recipe, [f"train.output_dir={run}", trained_at, *SHORT, *KINDS[kind]])
        return run

    return made


def scene(family: str = "llava") -> dict[str, torch.Tensor]:
    """Two rows of text and pictures for a model of that family."""
    return make_batch(family)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    """[B, L, V] of `scene`, where tokens are real."""
    batch = {name: x.to(unwrap(model).dtype) if x.is_floating_point() else x for name, x in scene().items()}
    return model(**batch).logits[batch["attention_mask"].bool()].float()
