"""A plan of DPO counts what TRL's batches of pairs run, policy and reference; one of GRPO is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from dart_train import attach
from dart_train.config import load_recipe
from dart_train.models.processors import load_processor
from dart_train.planning import predict
from dart_train.planning.predict import PlanInputs
from dart_train.training.preference.rows import open_rows
from tests.training.preference_scene import make_preference_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_preference_recipe(tmp_path_factory.mktemp("pairs"), "dpo")


def test_lengths_are_those_of_trls_batch_before_and_after_the_reduction(recipe: Path) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    read = load_recipe(recipe)
    inputs = PlanInputs.of(read, 1, 0, CPU)
    processor: Any = load_processor(read.model.path)
    rows = open_rows(read.data.train, read.data, processor, pairs=True).dataset
    pairs = inputs.batches.batches[0][::2] // 2
    assert list(inputs.batches.batches[0][1::2] // 2) == list(pairs) and len(pairs) == 4
    batch = DataCollatorForVisionPreference(processor)([rows[int(number)] for number in pairs])
    mask = batch.pop("completion_mask")
    model = AutoModelForImageTextToText.from_pretrained(read.model.path)
    with torch.no_grad(), attach(model, read.reduction.reducers(), output="compact") as attached:
        model(**batch, labels=batch["input_ids"].masked_fill(mask == 0, -100))
        kept = attached.last
    work = inputs.budgets[0].work
    assert kept is not None and int(work.rows[0]) == len(batch["input_ids"]) == 8
    begin = 1  # TRL adds no beginning of the sequence where the template writes none
    assert int(work.stages[0][1][0]) - begin == batch["input_ids"].shape[1]
    assert int(work.stages[1][1][0]) - begin == kept.length
    assert int(work.visual[0]) == sum(kept.visual_before) and int(work.kept[0]) == sum(kept.visual_after)
    assert int(work.targets[0]) == int(mask.sum())


def test_a_plan_of_pairs_adds_up_and_counts_the_reference(recipe: Path) -> None:
    plan = predict(load_recipe(recipe), device="cpu", seconds=0.05, ranks=1)
    assert plan.data["rows looked at"] == 12 and plan.run["samples_per_step_and_rank"] == 8
    for cost in (plan.full, plan.recipe):
        assert cost.seconds is not None and 0 < cost.seconds["reference"] < cost.step_seconds
        assert cost.flops["reference"] > cost.flops["vision tower"] > 0 and "reference" not in cost.memory
    assert plan.recipe.flops["reference"] < plan.full.flops["reference"]
    assert "one of the two conversations of a pair" in str(plan)


def test_a_reference_of_its_own_is_a_second_model(recipe: Path) -> None:
    full = ["parts.language={mode: full}", "parts.projector={mode: full}"]
    plan = predict(load_recipe(recipe, full), device="cpu", timing=False, ranks=1)
    assert plan.recipe.memory["reference"] == plan.recipe.memory["weights"] > 0


def test_a_cut_answer_counts_what_is_left(recipe: Path) -> None:
    inputs = PlanInputs.of(load_recipe(recipe), 1, 0, CPU)
    longest = int((inputs.rows.text + inputs.rows.visual).max())
    cut = PlanInputs.of(load_recipe(recipe, [f"data.max_length={longest - 2}"]), 1, 0, CPU)
    assert int((cut.rows.text + cut.rows.visual).max()) == longest - 2
    assert int((inputs.rows.targets - cut.rows.targets).max()) == 2
    with pytest.raises(ValueError, match=r"nothing_supervised|cannot be used"):
        PlanInputs.of(load_recipe(recipe, ["data.max_length=20"]), 1, 0, CPU)


def test_grpo_is_refused_with_the_reason(recipe: Path) -> None:
    other = make_preference_recipe(recipe.parent, "grpo")
    with pytest.raises(ValueError, match="grpo cannot be planned: most of its time goes into rollouts"):
        predict(load_recipe(other), device="cpu")


def test_pairs_that_cannot_be_used_are_dropped_together(recipe: Path) -> None:
    inputs = PlanInputs.of(load_recipe(recipe), 1, 0, CPU)
    assert inputs.rows.answers == 2 and len(inputs.rows.rows) == 24 and inputs.rows.counts == (12,)
    assert np.array_equal(inputs.rows.visual[::2], inputs.rows.visual[1::2])
