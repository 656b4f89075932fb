"""rsLoRA and DoRA: trained, resumed as if uninterrupted, and merged into an export that answers as the run does."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer

import dart_train
from dart_train.common.distributed import RankInfo
from dart_train.config import load_recipe
from dart_train.exporting import verify, verify_process
from dart_train.training.arguments import training_arguments
from dart_train.training.trainable import choose_parameters, load_model
from tests.fixtures.run_scene import losses, make_recipe
from tests.fixtures.runs import logits

SHORT = ["train.per_device_batch_size=2", "train.save_steps=2", "train.max_steps=4", "train.learning_rate=1e-2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("scene"))


@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_kind_of_lora_trains_resumes_and_exports(
    recipe: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))
    run = tmp_path / "run"
    more = [*SHORT, f"parts.lora.{kind}=true", f"train.output_dir={run}"]
    dart_train.train(recipe, more)
    uninterrupted = [line["loss"] for line in losses(run)]
    shutil.rmtree(run / "checkpoint-4")
    dart_train.train(recipe, more)
    assert [line["loss"] for line in losses(run)] == uninterrupted
    plain = tmp_path / "plain"
    dart_train.train(recipe, [*SHORT, f"train.output_dir={plain}"])
    assert [line["loss"] for line in losses(plain)][1:] != uninterrupted[1:]
    config = json.loads((run / "checkpoint-4" / "adapter_config.json").read_text())
    assert config[f"use_{kind}"] is True
    dart_train.export(run, tmp_path / "exported")
    trained, exported = (dart_train.load(path, device="cpu").model for path in (run, tmp_path / "exported"))
    torch.testing.assert_close(logits(exported), logits(trained), rtol=1e-4, atol=1e-4)


def test_rslora_scales_by_the_root_of_the_rank(recipe: Path) -> None:
    read = load_recipe(recipe, ["parts.lora.rslora=true", "parts.lora.rank=16", "parts.lora.alpha=8"])
    model = choose_parameters(load_model(read), read.parts)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    scalings = {scale for layer in layers for scale in layer.scaling.values()}
    assert scalings == {8 / math.sqrt(16)}


def test_dora_trains_magnitudes(recipe: Path) -> None:
    read = load_recipe(recipe, ["parts.lora.dora=true"])
    named = dict(choose_parameters(load_model(read), read.parts).named_parameters())
    magnitudes = [parameter for name, parameter in named.items() if "lora_magnitude_vector" in name]
    assert magnitudes and all(parameter.requires_grad for parameter in magnitudes)


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], 0.0), (["train.warmup_steps=3"], 3), (["train.warmup_steps=0", "train.warmup_ratio=0.5"], 0),
     (["train.warmup_ratio=1.0"], 10)],
)  # fmt: skip
def test_warmup_steps_take_precedence_over_the_ratio(recipe: Path, given: list[str], expected: float) -> None:
    read = load_recipe(recipe, ["train.zero_stage=0", *given])
    assert training_arguments(read, RankInfo(0, 1, 1, False), 10).warmup_steps == expected


def test_warmup_steps_set_the_learning_rate(recipe: Path, tmp_path: Path) -> None:
    more = [*SHORT, f"train.output_dir={tmp_path / 'run'}", "train.lr_scheduler=constant_with_warmup"]
    dart_train.train(recipe, [*more, "train.warmup_steps=2"])
    rates = [line["lr_language"] for line in losses(tmp_path / "run")]
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.01])
