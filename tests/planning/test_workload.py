"""What a plan counts is what training runs: tokens, targets, batches, steps and budgets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dart_train import DART, FewerPixels, attach
from dart_train.common.distributed import RankInfo
from dart_train.data.collator import Collator
from dart_train.models.resize import fewer_pixels
from dart_train.planning.predict import scheduled_budgets
from dart_train.planning.workload import MicroBatches
from dart_train.reduction.budget import Keep
from dart_train.reduction.schedule import budget_at_step
from dart_train.training.data_feed import TrainFeed
from tests.planning.cases import encode, inputs_of, recipe_of
from tests.zoo import FAMILIES

SIXTY = ("train.gradient_accumulation_steps=2", "data.train.0.limit=61")


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_that_the_model_really_keeps(text: str, models: Path, name: str) -> None:
    inputs = inputs_of(text, f"model.path={models}/{name}", rows=6)
    numbers, model = list(range(4)), FAMILIES[name].model()
    batch = encode(inputs, numbers)
    batches = MicroBatches(inputs.rows, np.array([numbers]), inputs.batches.depth, None)
    choices: list[tuple[Keep, dict[str, Any]]] = [(0.333, {}), (9, {}), (9, {"rule": "paper"}), (5, {"per": "image"})]
    for keep, options in choices:
        reducer = DART(keep=keep, layer=2, **options)
        with attach(model, reducer) as attached, torch.no_grad():
            model(**batch, use_cache=False)
            last = attached.last
        work = batches.workload([reducer])
        assert last is not None
        assert tuple(inputs.rows.kept(reducer)[0, numbers]) == last.visual_after
        assert tuple(inputs.rows.visual[numbers]) == last.visual_before
        assert [(layers, int(lengths[0])) for layers, lengths in work.stages] == [
            (2, batch["input_ids"].shape[1]),
            (3, last.length),
        ]


def test_targets_are_the_labels_of_the_batch(text: str) -> None:
    inputs = inputs_of(text, rows=8)
    encoder = inputs.rows.encoder
    for row in inputs.rows.rows:
        sample = row.location.sample()
        images = [row.location.source.store.open(ref) for ref in sample.images]
        labels = Collator(encoder.processor)([encoder.encode(sample, images)])["labels"]
        assert row.targets == int((labels != -100).sum())
        assert row.text + sum(row.visual) == labels.shape[1]


def test_fewer_pixels_are_counted_before_the_tower(text: str, models: Path) -> None:
    inputs = inputs_of(text, f"model.path={models}/qwen2_5_vl", rows=6)
    reducer = FewerPixels(keep=12)
    smaller = fewer_pixels(inputs.rows.encoder.processor, 12)
    for row, kept in zip(inputs.rows.rows, inputs.rows.kept(reducer)[0], strict=True):
        images = [row.location.source.store.open(ref) for ref in row.location.sample().images]
        output = smaller(text=[smaller.image_token], images=[images], return_tensors="pt")
        assert kept == int((output["input_ids"] == smaller.image_token_id).sum())
    work = inputs.batches.workload([reducer])
    assert (work.pixels == work.kept).all() and len(work.stages) == 1


def test_batches_and_steps_are_those_of_the_run(text: str) -> None:
    for overrides in ([], ["data.group_by_length=true"], ["train.max_steps=7"]):
        inputs = inputs_of(text, *overrides, *SIXTY, ranks=2, rows=0)
        ranks = [RankInfo(rank, 2, 2, False) for rank in range(2)]
        feeds = [TrainFeed.open(inputs.recipe, each, inputs.rows.encoder.processor) for each in ranks]
        assert inputs.steps == feeds[0].steps
        for rank, feed in enumerate(feeds):
            mine = list(feed.loader(0).batch_sampler)[:5]
            assert inputs.batches.batches[rank::2][: len(mine)].tolist() == mine


def test_dropped_rows_cost_nothing(text: str) -> None:
    inputs = inputs_of(text, "data.max_length=110", "data.max_bad_fraction=1.0", rows=0)
    dropped = np.array([row.dropped for row in inputs.rows.rows])
    assert 0 < dropped.sum() < len(dropped)
    assert inputs.full.work.rows.sum() == (~dropped[inputs.batches.batches]).sum()
    assert inputs.full.work.text.sum() == inputs.rows.text[inputs.batches.batches].sum()
    assert max(lengths.max() for _, lengths in inputs.full.work.stages) <= 110


def test_budgets_are_those_that_training_draws(text: str) -> None:
    recipe = recipe_of(text)
    elastic = scheduled_budgets(recipe, 50)
    assert sum(b.share for b in elastic) == pytest.approx(1) and elastic[0].label == "keep 1"
    drawn = Counter(budget_at_step(recipe.reduction.schedule, 0.222, step, 50, recipe.train.seed) for step in range(50))
    assert {b.reducers[0].keep: round(50 * b.share) for b in elastic} == drawn and len(set(drawn.values())) > 1
    moving = scheduled_budgets(recipe_of(text, "reduction.schedule={kind: progressive}"), 1000)
    assert sum(b.share for b in moving) == pytest.approx(1)
    keeps = [float(b.reducers[0].keep) for b in moving]
    assert keeps[:-1] == sorted(keeps[:-1], reverse=True) and keeps[-1] == max(keeps)
    stages = "reduction=[{method: dart, keep: 32, layer: 1}, {method: random, keep: 8, layer: 3}]"
    inputs = inputs_of(text, stages)
    assert [layers for layers, _ in inputs.budgets[0].work.stages] == [1, 2, 2]
    assert scheduled_budgets(recipe_of(text, "reduction=none"), 5) == []
