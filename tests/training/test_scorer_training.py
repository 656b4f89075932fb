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
from dart_train.reduction import Learned
from dart_train.training.run import run
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import losses, make_recipe

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


TASK = ["scorer.task=1.0", "scorer.attention=0"]


def test_scorer_learns_from_the_task_alone(folder: Path) -> None:
    checkpoint = train(folder, "task", *ALONE, *TASK, "scorer.learning_rate=0.01", "reduction.schedule.kind=fixed")
    lines = losses(folder / "task")
    assert all(line["grad_norm"] > 0 for line in lines) and not {"scorer_loss", "scorer_overlap"} & lines[0].keys()
    torch.manual_seed(0)
    new = Learned(share=0.5).make_scorer(load_file(checkpoint / SCORER_FILE)["layer_2.norm.weight"].shape[0])
    saved = load_file(checkpoint / SCORER_FILE)
    assert all(not torch.equal(saved[f"layer_2.{name}"], tensor) for name, tensor in new.state_dict().items())


def test_task_of_weight_zero_changes_nothing(folder: Path, alone: Path) -> None:
    again = train(folder, "again", *ALONE, "scorer.learning_rate=0.01", "scorer.task=0.0")
    first, second = (load_file(run / SCORER_FILE) for run in (alone, again))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_both_targets_learn_with_a_frozen_model_and_with_lora(folder: Path) -> None:
    for name, options in (("frozen_both", ALONE), ("lora_both", LEARNED)):
        train(folder, name, *options, "scorer.task=0.5", "train.max_steps=3")
        lines = losses(folder / name)
        assert all(line["scorer_loss"] > 0 and line["grad_norm"] > 0 for line in lines)
        assert all(0 <= line["scorer_overlap"] <= 1 and line["scorer_task_loss"] > 0 for line in lines)
        assert [line["scorer_temperature"] for line in lines] == pytest.approx([1.0, 0.1**0.5, 0.1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scorer.attention=0"], "as is scorer.task"),
        (["scorer.temperature_end=2.0"], "above temperature_start"),
        (["distill.enabled=true"], "distill.teacher"),
    ],
)
def test_targets_that_cannot_work_are_refused(folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(make_recipe(folder), [*LEARNED, *overrides])


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


# Name and ZeRO stage: from both targets, and from the task alone.
ON_RANKS = {f"both-{zero}": ["scorer.task=1.0"] for zero in "0123"} | {f"task-{zero}": TASK for zero in "03"}


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    options = [*LEARNED, "train.per_device_batch_size=1", "train.max_steps=4", "train.save_steps=4"]
    return [
        {
            "recipe": str(recipe),
            "overrides": [*options, *target, f"train.zero_stage={name[-1]}", f"train.output_dir={folder / name}"],
        }
        for name, target in ON_RANKS.items()
    ]


@pytest.mark.deepspeed
def test_zero_stages_learn_what_one_process_learns(rank_runs: RankRuns) -> None:
    """In some steps one rank has images and the other has none."""
    folder = rank_runs.folder
    found = {
        name: [(line["loss"], line.get("scorer_loss", 0.0)) for line in losses(folder / name)] for name in ON_RANKS
    }
    for name in ON_RANKS:
        first = f"{name[:-1]}0"
        assert len(found[name]) == 4
        assert torch.tensor(found[name]) == pytest.approx(torch.tensor(found[first]), rel=2e-3)
        saved = [load_file(folder / run / "checkpoint-4" / SCORER_FILE) for run in (first, name)]
        for key, tensor in saved[0].items():
            torch.testing.assert_close(saved[1][key], tensor, atol=1e-4, rtol=1e-3)
