"""`train.padding_free` trains what padded batches train; `train.tokens_per_batch` gives the same rows on any number of
ranks, and after a resumption."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dart_train import DART, attach, train
from dart_train.common.distributed import RankInfo
from dart_train.config import RecipeError, load_recipe
from dart_train.data.collator import Collator
from dart_train.data.encoder import Encoder
from dart_train.data.packing_collator import PackingCollator
from dart_train.data.sampler import DeterministicOrder
from dart_train.data.token_batches import TokenBatches
from dart_train.models.processors import load_processor
from dart_train.training.data_feed import TrainFeed
from tests.data.test_collate import rows_of
from tests.fixtures.run_scene import losses, make_recipe
from tests.zoo import FAMILIES

SHORT = ["train.per_device_batch_size=4", "train.max_steps=3", "train.save_steps=3", "train.learning_rate=1e-5"]
FILLED = ["train.padding_free=true", "train.tokens_per_batch=300", "train.per_device_batch_size=1"]


def go(recipe: Path, run: Path, *overrides: str) -> list[dict[str, Any]]:
    train(recipe, [f"train.output_dir={run}", *overrides])
    return losses(run)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llava", ()),
        ("qwen2_5_vl", ("train.gradient_checkpointing=true", "model.attn_implementation=eager")),
        ("idefics3", ("reduction.per=image",)),
        ("llava", ("reduction=none",)),
        ("llava", ("reduction.method=learned", "distill.enabled=true", "distill.teacher=full")),
        ("qwen2_5_vl", ("distill.enabled=true", "reduction.tower={layer: 1, keep: 0.5}")),
    ],
    ids=[
        "llava",
        "qwen, checkpointed, eager",
        "idefics, per image",
        "no reduction",
        "learned, distilled",
        "tower, gap",
    ],
)
def test_losses_are_those_of_padded_batches(tmp_path: Path, family: str, more: tuple[str, ...]) -> None:
    recipe = make_recipe(tmp_path, family)
    padded = go(recipe, tmp_path / "padded", *SHORT, *more)
    packed = go(recipe, tmp_path / "packed", *SHORT, *more, "train.padding_free=true")
    assert len(padded) == 3
    for a, b in zip(padded, packed, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=2e-3)
        assert (a["visual_before"], a["visual_after"]) == (b["visual_before"], b["visual_after"])


def feed_of(recipe: Path, world: int, accumulation: int, *more: str) -> list[TrainFeed]:
    read = load_recipe(recipe, [*FILLED, f"train.gradient_accumulation_steps={accumulation}", *more])
    processor = load_processor(read.model.path)
    return [TrainFeed.open(read, RankInfo(rank, world, world, False), processor, layers=5) for rank in range(world)]


def steps_of(feeds: list[TrainFeed], start: int = 0) -> list[list[str]]:
    """The names of the rows of each step, of all ranks."""
    accumulation = feeds[0].recipe.train.gradient_accumulation_steps
    return [
        sorted(chain.from_iterable(feed.row_ids(step, micro) for feed in feeds for micro in range(accumulation)))
        for step in range(start, feeds[0].steps)
    ]


def test_a_step_has_the_same_rows_on_any_number_of_ranks(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    expected = steps_of(feed_of(recipe, 1, 4, "train.max_steps=6"))
    assert steps_of(feed_of(recipe, 2, 2, "train.max_steps=6")) == expected
    assert steps_of(feed_of(recipe, 4, 1, "train.max_steps=6")) == expected
    assert len({len(rows) for rows in expected}) > 1  # filled by tokens, not by rows


def test_micro_batches_count_no_more_than_their_tokens(tmp_path: Path) -> None:
    """Counted on the batches themselves: the mean over layers of what each layer runs on."""
    recipe = make_recipe(tmp_path)
    feed = feed_of(recipe, 1, 1, "reduction={method: dart, keep: 0.25, layer: 2}", "train.epochs=2.0",
                   "train.max_steps=null")[0]  # fmt: skip
    image = load_processor(feed.recipe.model.path).image_token_id
    counted, rows = [], 0
    for batch in feed.loader(0):
        ids, lengths = batch["input_ids"], batch["row_lengths"]
        visual = int((ids == image).sum())
        counted.append(ids.shape[1] - visual + (2 * visual + 3 * round(visual * 0.25)) / 5)
        assert sum(lengths) == ids.shape[1] and "attention_mask" not in batch
        rows += len(lengths)
    assert max(counted) <= 300 < 1.5 * np.mean(counted)
    assert rows >= 2 * 24 and len(counted) == feed.steps


def test_every_epoch_has_every_row_once() -> None:
    lengths = np.random.RandomState(0).randint(1, 90, 5000)
    lengths[17] = 500  # more than a micro-batch holds
    batches = TokenBatches(DeterministicOrder([5000], seed=3), lengths, 256)
    for epoch in range(2):
        rows = list(chain.from_iterable(batches.epoch(epoch)))
        assert sorted(rows) == list(range(5000))
        sums = [int(lengths[batch].sum()) for batch in batches.epoch(epoch)]
        assert all(total <= 256 or batch == [17] for total, batch in zip(sums, batches.epoch(epoch), strict=True))
        assert np.mean(sums) > 0.98 * 256
    assert batches.epoch(0) != batches.epoch(1)
    first = len(batches.epoch(0))
    assert batches.batch(first) == batches.epoch(1)[0] and batches.epochs_in(first) == 1.0
    assert batches.number_for(1) == first and batches.number_for(1.5) == first + round(len(batches.epoch(1)) / 2)


def test_a_resumed_run_reads_on(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    options = [*FILLED, "train.max_steps=4", "train.save_steps=2", "train.learning_rate=1e-4"]
    expected = go(recipe, tmp_path / "through", *options)
    go(recipe, tmp_path / "twice", *options, "train.max_steps=2", "train.lr_scheduler=constant")
    with pytest.raises(ValueError, match="tokens_per_batch"):
        train(recipe, [f"train.output_dir={tmp_path / 'through'}", *options, "train.tokens_per_batch=200"])
    (tmp_path / "through/checkpoint-4").rename(tmp_path / "through-4")
    again = go(recipe, tmp_path / "through", *options)
    assert [line["loss"] for line in again[-2:]] == [line["loss"] for line in expected[-2:]]


def test_config_errors_come_together(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    wrong = ["train.tokens_per_batch=300", "train.per_device_batch_size=2", "data.pad_to_multiple_of=8"]
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, wrong)
    assert "padding_free: false" in str(error.value) and "per_device_batch_size: given 2" in str(error.value)
    rows = json.dumps([{"path": str(tmp_path / "rows.json"), "streaming": True}])
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, [*FILLED, "data.pad_to_multiple_of=8", f"data.train={rows}"])
    assert "pad_to_multiple_of" in str(error.value) and "streaming source" in str(error.value)


def test_families_that_cannot_are_refused_before_weights_are_read(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, "qwen3_5")
    with pytest.raises(ValueError, match=r"padding_free: not with Qwen3_5.*recurrent layers"):
        train(recipe, ["train.padding_free=true"])
    assert not (tmp_path / "run").exists()


def test_streamed_rows_are_packed_too(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    rows = json.dumps([{"path": str(tmp_path / "rows.json"), "images": str(tmp_path / "images"), "streaming": True}])
    padded = go(recipe, tmp_path / "padded", *SHORT, f"data.train={rows}")
    packed = go(recipe, tmp_path / "packed", *SHORT, f"data.train={rows}", "train.padding_free=true")
    assert [line["loss"] for line in packed] == pytest.approx([line["loss"] for line in padded], rel=1e-4)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "idefics3", "gemma3"])
def test_collated_rows_give_the_loss_of_the_padded_ones(family: str) -> None:
    encoder, model = Encoder(FAMILIES[family].processor()), FAMILIES[family].model()
    rows = [encoder.encode(*row) for row in rows_of((1, 0, 2))]
    padded, packed = Collator(encoder.processor)(rows), PackingCollator(encoder.processor)(rows)
    with torch.no_grad(), attach(model, DART(keep=6, per="image"), output="compact"):
        torch.testing.assert_close(model(**packed).loss, model(**padded).loss, rtol=2e-5, atol=2e-5)
