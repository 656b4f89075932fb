"""A budget per image is that of each image and each video, whatever text is within it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import DART, REDUCERS, Reducer, attach
from dart_train.hooks.batch_plan import plan_batch
from dart_train.models.structure import find_parts
from tests.fixtures.reference_forward import first_difference, masked_logits
from tests.laws.cases import ROUNDING, batch_of, method_on_family, model_of, new_tokens, reducer_of
from tests.zoo import FAMILIES, FAMILIES_WITH_VIDEO, conversation, encode, make_video_batch

SPLIT = ("idefics3", "smolvlm")  # text between tiles
METHODS = [method for method in REDUCERS if method != "pooling"]  # it merges: no masked forward
EVERYTHING = ("keep_all", "fewer_pixels")


@cache
def owners(name: str, n_images: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """A batch, and [B, L] the number of the image that each visual token belongs to, -1 elsewhere. Found
    independently of the package, by a processor that reports where it wrote each image."""
    processor = FAMILIES[name].processor()
    rows = [conversation(n, "which is red", seed=n)[0] for n in n_images]
    batch = encode(name, rows)
    model = model_of(name)
    owner = torch.full_like(batch["input_ids"], -1)
    for at, row in enumerate(rows):
        if not n_images[at]:
            continue
        text = processor.apply_chat_template(row, add_generation_prompt=True)
        shown = [part["image"] for part in row[0]["content"] if part["type"] == "image"]
        encoded = processor(
            text=[text], images=[shown], return_text_replacement_offsets=True, return_offsets_mapping=True
        )
        offset = batch["input_ids"].shape[1] - len(encoded["input_ids"][0])  # left padding
        for number, image in enumerate(encoded["text_replacement_offsets"][0]):
            start, stop = image["new_span"]
            for place, (begin, end) in enumerate(encoded["offset_mapping"][0]):
                if begin < stop and end > start and encoded["input_ids"][0][place] in find_parts(model).visual_ids:
                    owner[at, offset + place] = number
    return batch, owner


def kept_of_each(kept: Tensor, owner: Tensor) -> list[tuple[int, int]]:
    """(kept tokens, all tokens) of each image of the batch."""
    found = []
    for row, mine in zip(kept, owner, strict=True):
        found += [(int(row[mine == n].sum()), int((mine == n).sum())) for n in range(int(mine.max()) + 1)]
    return found


@pytest.mark.parametrize(("method", "name"), method_on_family())
def test_each_image_keeps_its_own_budget(method: str, name: str) -> None:
    batch, owner = owners(name, (1, 2, 0))
    model = model_of(name)
    for keep in (7, 0.3):
        with torch.no_grad(), attach(model, reducer_of(method, keep, per="image")) as attached:
            model(**batch)
        kept = attached.last
        assert kept is not None and torch.equal(kept.visual, owner >= 0)
        for number, size in kept_of_each(kept.kept_visual, owner):
            budget = keep if keep == 7 else round(0.3 * size)
            assert number == (size if method in EVERYTHING else min(size, budget))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SPLIT)
def test_images_in_pieces_equal_the_masked_forward(name: str, method: str) -> None:
    model, batch = model_of(name), batch_of(name, (1, 2, 0))
    with torch.no_grad(), attach(model, reducer_of(method, 7, per="image")) as attached:
        logits = model(**batch).logits
    same_as_masked(model, batch, logits, attached.last)


def same_as_masked(model: Any, batch: Any, logits: Tensor, kept: Any) -> None:
    with torch.no_grad():
        truth = masked_logits(model, batch, [(2, kept.mask)])
    assert first_difference(logits, truth, kept.mask) < ROUNDING


@pytest.mark.parametrize("method", REDUCERS)
@pytest.mark.parametrize("name", FAMILIES_WITH_VIDEO)
def test_video_counts_as_one_image(name: str, method: str) -> None:
    model, batch = model_of(name), make_video_batch(name)
    sizes = (batch["input_ids"] == model.config.video_token_id).sum(1).tolist()
    with torch.no_grad(), attach(model, reducer_of(method, 7, per="image")) as attached:
        logits = model(**batch).logits
    kept = attached.last
    assert kept is not None and list(kept.visual_before) == sizes
    assert list(kept.visual_after) == (sizes if method in EVERYTHING else [7, 7])
    if method in METHODS:
        same_as_masked(model, batch, logits, kept)


def stages(keep: int) -> list[Reducer]:
    return [DART(layer=1, keep=2 * keep, per="image"), DART(layer=3, keep=keep, per="image")]


@pytest.mark.parametrize("name", [*SPLIT, "qwen3_vl"])
def test_later_stages_keep_to_the_same_images(name: str) -> None:
    batch, owner = owners(name, (2, 1))
    model = model_of(name)
    with torch.no_grad(), attach(model, stages(5)) as attached:
        model(**batch)
    kept = attached.last
    assert kept is not None
    for mask, budget in zip(kept.stages, (10, 5), strict=True):
        assert {number for number, _ in kept_of_each(mask & kept.visual, owner)} == {budget}


@pytest.mark.parametrize("method", ["dart", "uniform", "window_fastv"])
@pytest.mark.parametrize("name", [*SPLIT, "qwen2_5_vl", "llava_onevision"])
def test_beams_share_the_images_of_their_sample(name: str, method: str) -> None:
    """Beam search repeats the inputs of the forward, image grids included; `generate` is given each once."""
    model, batch = model_of(name), batch_of(name, (2, 1))
    with attach(model, reducer_of(method, 7, per="image")) as attached:
        cached = new_tokens(model, batch, 3, num_beams=2)
        kept: Any = attached.last
        assert kept.visual_after == (14, 14, 7, 7)
        assert torch.equal(kept.mask[0], kept.mask[1]) and torch.equal(kept.mask[2], kept.mask[3])
        assert torch.equal(cached, new_tokens(model, batch, 3, num_beams=2, use_cache=False))


def test_grids_may_be_prefetched() -> None:
    model, batch = model_of("qwen2_5_vl"), batch_of("qwen2_5_vl", (1, 2))
    with torch.no_grad(), attach(model, reducer_of("uniform", 7, per="image")) as attached:
        model(**batch)
        first: Any = attached.last
        attached.prefetch_batch(**batch)
        blind = {name: x for name, x in batch.items() if name != "image_grid_thw"}
        prefetched = attached._engine.prefetched
        assert prefetched is not None and torch.equal(prefetched["image_grid_thw"], batch["image_grid_thw"])
        plan = plan_batch(blind, None, attached._engine.parts, attached.reducers, prefetched=prefetched)
    assert plan is not None and plan.groups is not None
    assert plan.groups.sizes == tuple(sum(r * c for r, c in shapes) for shapes in plan.grid_shapes or ())
    assert len(plan.groups.sizes) == 3 and first.visual_after == (7, 14)
