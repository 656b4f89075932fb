"""The reduced forward is the full-length forward with the dropped tokens hidden from layers >= K."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import DART, REDUCERS, FastV, Pooling, Random, Reducer, attach
from tests.fixtures.reference_forward import first_difference, masked_logits
from tests.laws.cases import EAGER_TOO, IMAGES, KERNELS, METHODS, NAMES, ROUNDING, batch_of, model_of, reducer_of


def reduced(model: Any, batch: dict[str, Tensor], reducer: Reducer | list[Reducer], **options: Any) -> Any:
    with torch.no_grad(), attach(model, reducer, **options) as attached:
        return model(**{k: v for k, v in batch.items() if k != "labels"}).logits, attached.last


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_dart_equals_the_masked_forward(name: str, attn: str, images: tuple[int, ...], side: str) -> None:
    model, batch = model_of(name, attn), batch_of(name, images, side)
    logits, kept = reduced(model, batch, DART(keep=8))
    assert kept.visual_after == tuple(min(8, n) for n in kept.visual_before)
    with torch.no_grad():
        truth = masked_logits(model, batch, [(2, kept.mask)])
    assert first_difference(logits, truth, kept.mask) < ROUNDING


@pytest.mark.parametrize(
    ("method", "layer"),
    [
        (method, layer)
        for method in METHODS
        for layer in (0, 1, 3)
        if method != "pooling" and (layer or "attention" not in REDUCERS[method].requires)  # refused: test_refusals
    ],
)
@pytest.mark.parametrize("name", EAGER_TOO)
def test_every_method_equals_the_masked_forward(name: str, method: str, layer: int) -> None:
    model, batch = model_of(name), batch_of(name)
    logits, kept = reduced(model, batch, reducer_of(method, layer=layer))
    with torch.no_grad():
        truth = masked_logits(model, batch, [(layer, kept.mask)])
    assert first_difference(logits, truth, kept.mask) < ROUNDING


@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_two_stages_equal_the_forward_masked_twice(name: str, attn: str) -> None:
    model, batch = model_of(name, attn), batch_of(name)
    logits, kept = reduced(model, batch, [DART(layer=1, keep=12), FastV(layer=3, keep=5)])
    assert bool((kept.stages[1] <= kept.stages[0]).all())
    assert kept.visual_after == tuple(min(5, n) for n in kept.visual_before)
    with torch.no_grad():
        truth = masked_logits(model, batch, [(1, kept.stages[0]), (3, kept.stages[1])])
    assert first_difference(logits, truth, kept.mask) < ROUNDING


@pytest.mark.parametrize("name", NAMES)
def test_compact_output_is_the_kept_part_of_the_expanded_one(name: str) -> None:
    model, batch = model_of(name), batch_of(name)
    long, kept = reduced(model, batch, Random(keep=6))
    short, _ = reduced(model, batch, Random(keep=6), output="compact")
    assert short.shape[1] == kept.length < long.shape[1]
    for row in range(len(long)):
        number = int(kept.mask[row].sum())
        torch.testing.assert_close(short[row, -number:], long[row, kept.mask[row]])
    assert torch.equal(long[:, -1], short[:, -1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_its_samples_one_by_one(name: str, side: str) -> None:
    from tests.zoo import conversation, encode

    model = model_of(name)
    rows = [conversation(n, question, seed=n)[0] for n, question in ((1, "what is it"), (2, "how many red ones"))]
    together = encode(name, rows, padding_side=side)
    _, kept = reduced(model, together, DART(keep=8))
    for i, row in enumerate(rows):
        _, alone = reduced(model, encode(name, [row], padding_side=side), DART(keep=8))
        real = together["attention_mask"][i].bool()
        assert torch.equal(kept.mask[i][real], alone.mask[0])


def merged_by_hand(hidden: Tensor, kept: Tensor, visual: Tensor, scale: Tensor) -> Tensor:
    """Plain loops: every dropped token goes to the kept one of highest cosine; each becomes the mean."""
    out = hidden.clone()
    for row in range(len(hidden)):
        stays = (kept & visual)[row].nonzero().flatten().tolist()
        groups = {place: [hidden[row, place]] for place in stays}
        for place in (visual & ~kept)[row].nonzero().flatten().tolist():
            of = [torch.cosine_similarity(hidden[row, place] * scale, hidden[row, s] * scale, 0) for s in stays]
            groups[stays[int(torch.stack(of).argmax())]].append(hidden[row, place])
        for place, members in groups.items():
            out[row, place] = torch.stack(members).mean(0)
    return out


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_merging_averages_dropped_tokens_into_the_nearest_kept_one(name: str) -> None:
    model, batch = model_of(name), batch_of(name, (1, 2))
    logits, kept = reduced(model, batch, Random(keep=6, merge="nearest"))
    norm = model.get_decoder().norm
    scale = 1 + norm.weight if name == "gemma3" else norm.weight
    with torch.no_grad():
        change = lambda hidden: merged_by_hand(hidden, kept.mask, kept.visual, scale)  # noqa: E731
        truth = masked_logits(model, batch, [(2, kept.mask)], change)
    assert first_difference(logits, truth, kept.mask) < ROUNDING


def test_pooling_puts_the_mean_of_each_cell_at_its_middle() -> None:
    model, batch = model_of("llava"), batch_of("llava", (1,))
    logits, kept = reduced(model, batch, Pooling(keep=16))  # 8 x 8 tokens in 2 x 2 cells
    start = int(kept.visual[0].nonzero()[0])

    def change(hidden: Tensor) -> Tensor:
        grid = hidden[0, start : start + 64].T.reshape(-1, 8, 8)
        means = torch.nn.functional.avg_pool2d(grid, 2).flatten(1).T
        places = kept.kept_visual[0].nonzero().flatten()
        return hidden.index_copy(1, places, means[None])

    with torch.no_grad():
        truth = masked_logits(model, batch, [(2, kept.mask)], change)
    assert first_difference(logits, truth, kept.mask) < ROUNDING


@pytest.mark.parametrize("layers", [(0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_have_one_length_in_expand_mode(name: str, layers: tuple[int, int]) -> None:
    """And at kept tokens they are those of the short sequence, which compact mode returns."""
    model, batch = model_of(name), batch_of(name)
    stages = [DART(layer=layers[0], keep=20), DART(layer=layers[1], keep=8)]
    with torch.no_grad(), attach(model, stages) as attached:
        expanded = model(**batch, output_hidden_states=True).hidden_states
        kept = attached.last
    with torch.no_grad(), attach(model, stages, output="compact"):
        short = model(**batch, output_hidden_states=True).hidden_states
    assert kept is not None and len(expanded) == len(short)
    assert {states.shape[1] for states in expanded} == {batch["input_ids"].shape[1]}
    for number, (full, small) in enumerate(zip(expanded, short, strict=True)):
        stage = sum(layer < max(number, 1) for layer in layers)
        if not stage:
            assert torch.equal(full, small)
            continue
        for row, mask in enumerate(kept.stages[stage - 1]):
            assert torch.equal(full[row][mask], small[row][-int(mask.sum()) :])
