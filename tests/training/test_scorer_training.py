"""Recipes with method learned: the scorer alone, or with the model; checkpoints, resume and load keep its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import dart_train
from dart_train.checkpoints.scorer_file import SCORER_FILE
from dart_train.config import load_recipe
from dart_train.models.structure import SCORERS
from dart_train.training.run import run
from tests.fixtures.run_scene import ROOT, launch, losses, make_recipe

LEARNED = ["reduction.method=learned", "reduction.share=0.5"]
ALONE = [*LEARNED, "parts.projector.mode=frozen", "parts.language.mode=frozen"]


def train(folder: Path, name: str, *overrides: str) -> Path:
    result = run(load_recipe(make_recipe(folder), [*overrides, f"train.output_dir={folder / name}"]))
    assert result.stopped is None and result.checkpoint is not None
    return result.checkpoint


def names_in(file: Path) -> set[str]:
    with safe_open(file, "pt") as opened:
        return set(opened.keys())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scorer")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    return train(folder, "alone", *ALONE, "scorer.learning_rate=0.01")


def test_scorer_alone_learns_and_the_model_stays(folder: Path, alone: Path) -> None:
    found = [line["scorer_loss"] for line in losses(folder / "alone")]
    assert found[-1] < found[0]
    before, after = load_file(folder / "llava/model.safetensors"), load_file(alone / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_scorer_is_in_a_file_of_its_own(alone: Path) -> None:
    assert all(name.startswith("layer_2.") for name in names_in(alone / SCORER_FILE))
    assert not any(SCORERS in name for name in names_in(alone / "model.safetensors"))
    stage = json.loads((alone / "reducer.json").read_text())["stages"][0]
    assert stage["method"] == "learned" and stage["share"] == 0.5


def test_load_attaches_the_trained_scorer(alone: Path) -> None:
    loaded = dart_train.load(alone, device="cpu")
    assert loaded.attached is not None
    saved = load_file(alone / SCORER_FILE)
    for name, tensor in loaded.attached.scorers[2].state_dict().items():
        assert torch.equal(tensor, saved[f"layer_2.{name}"])


def test_lora_and_scorer_learn_together_and_resume_exactly(folder: Path) -> None:
    options = [*LEARNED, "train.save_steps=3", "train.lr_scheduler=constant"]
    full = train(folder, "full", *options, "train.max_steps=6")
    train(folder, "two_parts", *options, "train.max_steps=6", "train.max_steps=3")
    resumed = train(folder, "two_parts", *options, "train.max_steps=6")
    pairs: list[list[Any]] = [
        [(line["loss"], line["scorer_loss"]) for line in losses(folder / name)][3:] for name in ("full", "two_parts")
    ]
    assert len(pairs[0]) == 3 and pairs[0] == pairs[1]
    for file in (SCORER_FILE, "adapter_model.safetensors"):
        assert all(torch.equal(x, load_file(resumed / file)[name]) for name, x in load_file(full / file).items())


def test_training_starts_from_given_scorers(folder: Path, alone: Path) -> None:
    frozen = train(folder, "frozen", *LEARNED, f"scorer.path={alone}", "scorer.train=false", "train.max_steps=2")
    given, kept = load_file(alone / SCORER_FILE), load_file(frozen / SCORER_FILE)
    assert all(torch.equal(kept[name], tensor) for name, tensor in given.items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reduction.layer=3"], "not of layer 3"),
        (["reduction.guidance=none"], "other weights"),
        (["scorer.path=nowhere"], "nowhere"),
    ],
)
def test_scorers_that_do_not_fit_are_refused(folder: Path, alone: Path, overrides: list[str], message: str) -> None:
    recipe = load_recipe(make_recipe(folder), [*LEARNED, f"scorer.path={alone}", *overrides])
    with pytest.raises(ValueError, match=message):
        run(recipe)


def test_checkpoint_without_its_scorer_file_names_it(alone: Path, tmp_path: Path) -> None:
    for file in alone.iterdir():
        if file.is_file() and file.name != SCORER_FILE:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=SCORER_FILE):
        dart_train.load(tmp_path, device="cpu")


@pytest.mark.deepspeed
def test_zero_stages_learn_what_one_process_learns(folder: Path) -> None:
    """Ranks have different numbers of images, and some have none."""
    options = [*LEARNED, "train.per_device_batch_size=4", "train.max_steps=4", "train.save_steps=4"]
    recipe = make_recipe(folder)
    jobs = [
        {"recipe": str(recipe), "overrides": [*options, f"train.zero_stage={z}", f"train.output_dir={folder / z}"]}
        for z in "0123"
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = launch(ROOT / "tests/fixtures/job_runner.py", str(folder / "jobs.json"), timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    runs = {z: [(line["loss"], line["scorer_loss"]) for line in losses(folder / z)] for z in "0123"}
    assert len(runs["2"]) == 4
    for z in "013":
        assert torch.tensor(runs[z]) == pytest.approx(torch.tensor(runs["2"]), rel=2e-3)
    saved = [load_file(folder / z / "checkpoint-4" / SCORER_FILE) for z in "0123"]
    for other in saved[1:]:
        for name, tensor in saved[0].items():
            torch.testing.assert_close(other[name], tensor, atol=1e-4, rtol=1e-3)
