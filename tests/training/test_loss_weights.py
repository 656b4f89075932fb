"""Weights of turns: the loss is the weighted mean over all targets of a step, however the step is divided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dart_train import train
from dart_train.training.objective import SupervisedLogits
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import losses, make_recipe

STEPS = 3
BATCH = ["train.per_device_batch_size=8", f"train.max_steps={STEPS}"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("scene"))


def weighted(recipe: Path, name: str, weights: list[float]) -> str:
    """The rows of the recipe with these weights, repeated, as `data.train`."""
    rows = json.loads((recipe.parent / "rows.json").read_text())
    for number, row in enumerate(rows):
        row["conversations"][-1]["weight"] = weights[number % len(weights)]
    file = recipe.parent / f"{name}.json"
    file.write_text(json.dumps(rows))
    return "data.train=" + json.dumps([{"path": str(file), "images": str(recipe.parent / "images")}])


def go(recipe: Path, run: Path, *overrides: str) -> list[dict[str, Any]]:
    train(recipe, [f"train.output_dir={run}", *BATCH, *overrides])
    return losses(run)


def test_weighted_loss_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    logits, targets, weights = torch.randn(5, 7), torch.randint(7, (5,)), torch.tensor([0.5, 1.0, 2.0, 0.25, 1.0])
    each = [SupervisedLogits(logits[i : i + 1], targets[i : i + 1]) for i in range(5)]
    output = SupervisedLogits(logits, targets, weights)
    expected = sum(float(w) * float(one.loss()) for w, one in zip(weights, each, strict=True))
    assert float(output.loss()) == pytest.approx(expected) and output.total_weight() == float(weights.sum())
    teacher = torch.randn(5, 7)
    parts = [float(one.divergence(teacher[i : i + 1], 2.0)) for i, one in enumerate(each)]
    assert float(output.divergence(teacher, 2.0)) == pytest.approx(float(weights @ torch.tensor(parts)))


def test_equal_weights_change_nothing_and_others_do(recipe: Path, tmp_path: Path) -> None:
    plain = go(recipe, tmp_path / "plain")
    half = go(recipe, tmp_path / "half", weighted(recipe, "half", [0.5]))
    mixed = go(recipe, tmp_path / "mixed", weighted(recipe, "mixed", [0.25, 1.0]))
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in half] == pytest.approx([line[name] for line in plain], rel=1e-5)
        assert [line[name] for line in mixed] != pytest.approx([line[name] for line in plain], rel=1e-3)


def test_accumulation_divides_a_weighted_step_exactly(recipe: Path, tmp_path: Path) -> None:
    rows = weighted(recipe, "uneven", [0.25, 1.0, 0.0, 3.0, 1.0])
    one = go(recipe, tmp_path / "one", rows, "data.max_bad_fraction=1.0")
    shape = ["train.per_device_batch_size=2", "train.gradient_accumulation_steps=4"]
    several = go(recipe, tmp_path / "several", rows, *shape, "data.max_bad_fraction=1.0")
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in several] == pytest.approx([line[name] for line in one], rel=1e-4)


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    rows = weighted(recipe, "ranks", [0.25, 1.0, 3.0])
    shape = ["train.per_device_batch_size=2", "train.gradient_accumulation_steps=2", f"train.max_steps={STEPS}"]
    return [{"recipe": str(recipe), "overrides": [rows, *shape, f"train.output_dir={folder / 'ranks'}"]}]


@pytest.mark.deepspeed
def test_ranks_divide_a_weighted_step_exactly(rank_runs: RankRuns) -> None:
    rows = weighted(rank_runs.recipe, "ranks", [0.25, 1.0, 3.0])
    one = go(rank_runs.recipe, rank_runs.folder / "one", rows)
    ranks = losses(rank_runs.folder / "ranks")
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in ranks] == pytest.approx([line[name] for line in one], rel=2e-3)


def test_a_template_of_the_recipe_is_saved_with_the_processor(recipe: Path, tmp_path: Path) -> None:
    source = (recipe.parent / "llava" / "chat_template.jinja").read_text()
    file = tmp_path / "mine.jinja"
    file.write_text("{#- mine -#}" + source)
    save = ["train.save_steps=1", "train.max_steps=1"]
    go(recipe, tmp_path / "run", f"data.template={file}", *save)
    assert (tmp_path / "run/checkpoint-1/chat_template.jinja").read_text() == file.read_text()
    file.write_text("{#- changed -#}" + source)
    with pytest.raises(ValueError, match=r"data\.template: its text is not that of"):
        go(recipe, tmp_path / "run", f"data.template={file}", "train.max_steps=2")
    with pytest.raises(ValueError, match=r"data\.template: not a Jinja template.*\n.*offload_parameters"):
        go(recipe, tmp_path / "other", "data.template='{% if %}'", "train.offload_parameters=true")
    with pytest.raises(ValueError, match="neither the text of a Jinja template nor a file"):
        go(recipe, tmp_path / "other", "data.template=nowhere.jinja")
