"""Rows laid end to end are the padded batch: budgets, choices, losses and gradients, and no row sees another."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils

from dart_train import DART, FastV, KeepAll, Learned, Pooling, Random, Reducer, attach
from dart_train.conformance.packed import without_padding
from dart_train.hooks.packing import RowPacking
from dart_train.models.structure import find_parts
from dart_train.reduction.packed_rows import PackedRows
from tests.laws.cases import KERNELS, METHODS, NAMES, batch_of, model_of, reducer_of
from tests.laws.test_keep_all import gradients
from tests.zoo import FAMILIES, HYBRIDS

STAGES: dict[str, Any] = {
    "dart": DART(keep=8),
    "dart per image": DART(keep=6, per="image"),
    "fastv": FastV(keep=8),
    "fastv own row": FastV(keep=8, row="own"),
    "learned": Learned(keep=8),
    "learned per image": Learned(keep=6, per="image"),
    "two stages": [DART(layer=1, keep=12), FastV(layer=3, keep=5)],
    "layer 0": DART(layer=0, keep=8, merge="nearest"),
    "random": Random(keep=0.3),
    "pooling": Pooling(keep=9),
}
ROWS = (1, 2, 0)  # images of each row
THREE = ("llava", "qwen2_5_vl", "qwen3_vl")


def both(name: str, attn: str = "sdpa", images: tuple[int, ...] = ROWS) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    batch = batch_of(name, images, "right", labels=True)
    return model_of(name, attn), batch, without_padding(batch)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", THREE)
def test_choices_and_losses_are_those_of_the_padded_batch(name: str, attn: str, stages: str) -> None:
    model, padded, packed = both(name, attn)
    real = padded["attention_mask"].bool()
    for output in ("compact", "expand"):
        with torch.no_grad(), attach(model, STAGES[stages], output=output) as attached:
            expected, before = model(**padded), attached.last
            found, after = model(**packed), attached.last
        assert before is not None and after is not None
        assert after.visual_after == before.visual_after and after.visual_before == before.visual_before
        assert torch.equal(after.mask[0], before.mask[real]) and torch.equal(after.visual[0], before.visual[real])
        if before.pivots is not None and after.pivots is not None:
            assert torch.equal(after.pivots[0], before.pivots[real])
        assert after.length == int(before.mask.sum())  # nothing is padding
        close(found.loss, expected.loss)
        close(found.logits[0], expected.logits[0] if output == "compact" else expected.logits[real])


@pytest.mark.parametrize("stages", ["dart per image", "fastv", "learned", "two stages"])
@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", THREE)
def test_gradients_are_those_of_the_padded_batch(name: str, attn: str, stages: str) -> None:
    """With and without checkpointing, where attention is computed again in the backward."""
    _, padded, packed = both(name, attn)
    model = FAMILIES[name].model(attn).train()
    model.get_input_embeddings().weight.requires_grad_(True)
    with attach(model, STAGES[stages], output="compact"):
        expected = gradients(model, padded)
        found = gradients(model, packed)
        model.activation_checkpointing_enable({"use_reentrant": False})
        again = gradients(model, packed)
        model.activation_checkpointing_disable()
    assert found.keys() == expected.keys() == again.keys()
    for parameter in expected:
        torch.testing.assert_close(found[parameter], expected[parameter], rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(again[parameter], found[parameter], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_family(name: str) -> None:
    model, padded, packed = both(name)
    with torch.no_grad(), attach(model, DART(keep=8), output="compact") as attached:
        expected, before = model(**padded).loss, attached.last
        found, after = model(**packed).loss, attached.last
    assert before is not None and after is not None
    assert torch.equal(after.mask[0], before.mask[padded["attention_mask"].bool()])
    close(found, expected)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str) -> None:
    model, padded, packed = both("llava")
    with torch.no_grad(), attach(model, reducer_of(method), output="compact") as attached:
        expected, before = model(**padded).loss, attached.last
        found, after = model(**packed).loss, attached.last
    assert before is not None and after is not None
    assert torch.equal(after.mask[0], before.mask[padded["attention_mask"].bool()])
    close(found, expected)


@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_without_a_reduction(name: str, attn: str) -> None:
    """Keep-all, paused, text alone, and no reduction at all."""
    model, padded, packed = both(name, attn)
    text = batch_of(name, (0, 0), "right", labels=True)
    packed_text = without_padding(text)
    with torch.no_grad():
        expected, expected_text = model(**padded).loss, model(**text).loss
        with attach(model, KeepAll()) as attached:
            close(model(**packed).loss, expected)
            close(model(**packed_text).loss, expected_text)
            with attached.paused():
                close(model(**packed).loss, expected)
        packing = RowPacking(find_parts(model)).register_hooks()
        close(model(**packed).loss, expected)
        packing.remove()
        close(model(**padded).loss, expected)


@pytest.mark.parametrize("reducer", [DART(keep=8), FastV(keep=8), Learned(keep=8)])
@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_no_row_sees_another(name: str, attn: str, reducer: Reducer) -> None:
    """Another text and another image in one row: the logits of the others stay what they are, bit by bit."""
    model, _, packed = both(name, attn, (1, 1, 1))
    rows = PackedRows(tuple(packed["row_lengths"]))
    text = (rows.number == 1) & (packed["labels"][0] != -100)
    changed = {**packed, "input_ids": packed["input_ids"].clone(), "pixel_values": packed["pixel_values"].clone()}
    changed["input_ids"][0, text] = packed["input_ids"][0, text].flip(0)
    images = changed["pixel_values"].chunk(3) if name != "qwen2_5_vl" else changed["pixel_values"].split(
        packed["image_grid_thw"].prod(1).tolist()
    )  # fmt: skip
    images[1].neg_()
    with torch.no_grad(), attach(model, reducer) as attached:
        before, kept = model(**packed).logits[0], attached.last
        after, kept_after = model(**changed).logits[0], attached.last
    assert kept is not None and kept_after is not None
    others = rows.number != 1
    assert torch.equal(kept.mask[0, others], kept_after.mask[0, others])
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[~others], after[~others])


@pytest.mark.parametrize("name", THREE)
def test_teacher_in_the_same_forward(name: str) -> None:
    model, padded, packed = both(name)
    with torch.no_grad(), attach(model, DART(keep=8), output="compact") as attached, attached.with_teacher(0.5):
        expected, found = model(**padded, use_cache=False).logits, model(**packed).logits
    assert expected.shape[0] == 2
    close(found, expected)


def test_teacher_with_a_reduction_of_its_own() -> None:
    model, padded, packed = both("llava")
    reducer, teacher = DART(layer=0, keep=8, per="image"), DART(layer=2, keep=12)
    with torch.no_grad(), attach(model, reducer, output="compact") as attached, attached.with_teacher(teacher):
        expected, found = model(**padded, use_cache=False).logits, model(**packed).logits
    close(found, expected)


@pytest.mark.parametrize("name", THREE)
def test_scorers_learn_the_same(name: str) -> None:
    _, padded, packed = both(name)
    model = FAMILIES[name].model()
    losses, found = [], []
    with (
        attach(model, Learned(keep=1.0, per="image"), output="compact") as attached,
        attached.with_scorer_loss(),
        attached.with_task_gradient(0.5),
    ):
        for batch in (padded, packed):
            model.zero_grad()
            loss = model(**batch).loss + attached.scorer_loss()
            loss.backward()
            losses.append(loss.detach())
            found.append([w.grad.clone() for w in attached.scorers[2].parameters() if w.grad is not None])
    close(losses[1], losses[0])
    assert found[0] and all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(*found, strict=True))


def test_task_gradient_reaches_the_scores() -> None:
    model, padded, packed = FAMILIES["llava"].model(), *both("llava")[1:]
    found = []
    with attach(model, Learned(keep=6, share=1.0), output="compact") as attached, attached.with_task_gradient(0.5):
        for batch in (padded, packed):
            model.zero_grad()
            model(**batch).loss.backward()
            found.append([w.grad.clone() for w in attached.scorers[2].parameters() if w.grad is not None])
    assert any(bool(grad.abs().max() > 0) for grad in found[0])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(*found, strict=True))


def test_compact_positions() -> None:
    model, padded, packed = both("llava")
    with torch.no_grad(), attach(model, DART(layer=0, keep=8, positions="compact"), output="compact"):
        close(model(**packed).loss, model(**padded).loss)


@pytest.mark.parametrize("output", ["compact", "expand"])
def test_first_token_of_a_row_is_not_a_target(output: str) -> None:
    model, padded, packed = both("llava")
    labels = packed["labels"].clone()
    labels[0, list(PackedRows(tuple(packed["row_lengths"])).starts)] = 5
    with torch.no_grad(), attach(model, Pooling(keep=9), output=output):
        close(model(**{**packed, "labels": labels}).loss, model(**padded).loss)


@pytest.mark.parametrize("name", THREE)
def test_formats_of_other_trainers(name: str) -> None:
    """Position ids that start again without a mask (TRL, DataCollatorWithFlattening), and `cu_seq_lens_q`."""
    model, padded, packed = both(name)
    lengths = packed.pop("row_lengths")
    rows = PackedRows(tuple(lengths))
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    flash = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(lengths), "max_length_k": max(lengths)}
    with torch.no_grad(), attach(model, DART(keep=8)):
        expected = model(**padded).loss
        for marks in ({"position_ids": rows.place[None]}, {**flash, "position_ids": rows.place[None]}, flash):
            close(model(**packed, **marks).loss, expected)
        packed.pop("mm_token_type_ids", None)
        close(model(**packed, position_ids=rows.place[None]).loss, expected)


def test_no_trace_is_left() -> None:
    model, _, packed = both("llava")
    before = [dict(vars(m)["_forward_pre_hooks"]) for m in model.modules()]
    with torch.no_grad(), attach(model, DART(keep=8)):
        model(**packed)
    assert [dict(vars(m)["_forward_pre_hooks"]) for m in model.modules()] == before
    assert all(type(m.config).__name__ != "PackedAttentionConfig" for m in model.modules() if hasattr(m, "config"))


def test_a_copy_of_the_model_packs_by_itself() -> None:
    """Made after a packed forward, whose hooks on the layers it must not share."""
    model, _, packed = both("llava")
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        expected = model(**packed).loss
        twin = copy.deepcopy(model)
        attached.remove()
        close(twin(**packed).loss, expected)
        close(twin(**packed).loss, expected)


@pytest.mark.parametrize("name", HYBRIDS)
def test_recurrent_layers_are_refused(name: str) -> None:
    model, packed = HYBRIDS[name].model(), without_padding(batch_of_hybrid(name))
    with torch.no_grad(), attach(model, DART(keep=8)), pytest.raises(NotImplementedError, match="recurrent layers"):
        model(**packed)


def batch_of_hybrid(name: str) -> Any:
    from tests.zoo import make_batch

    return make_batch(name, images=(1, 0), padding_side="right", labels=True)


def test_wrong_lengths_are_refused() -> None:
    model, _, packed = both("llava")
    with attach(model, DART(keep=8)):
        with pytest.raises(ValueError, match="packed rows of 7 tokens in all"):
            model(**{**packed, "row_lengths": [3, 4]})
        with pytest.raises(ValueError, match="each of at least one token"):
            model(**{**packed, "row_lengths": [3, 0]})


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_flash_kernels_get_the_boundaries_of_the_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own way to its flash kernels, whose function of variable lengths is computed by torch here."""
    calls = []

    def varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **options: Any) -> Tensor:
        """[T, H, d] each."""
        calls.append((cu_seqlens_q.tolist(), options["max_seqlen_q"]))
        assert torch.equal(cu_seqlens_q, cu_seqlens_k) and cu_seqlens_q.dtype == torch.int32
        rows = zip(*(x.split(torch.diff(cu_seqlens_q).tolist()) for x in (q, k, v)), strict=True)
        attend = torch.nn.functional.scaled_dot_product_attention
        heads = [[x.transpose(0, 1) for x in row] for row in rows]
        return torch.cat([attend(*row, is_causal=True, enable_gqa=True).transpose(0, 1) for row in heads])

    def kernels(implementation: Any) -> Any:
        return (None, varlen, None, None, None), (lambda max_seqlen_q, **_: {"max_seqlen_q": max_seqlen_q}, None)

    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", kernels)
    model, _, packed = both(name)
    flash = FAMILIES[name].model()
    find_parts(flash).text_config._attn_implementation = "flash_attention_2"
    with torch.no_grad(), attach(model, DART(keep=8)), attach(flash, DART(keep=8)) as attached:
        close(flash(**packed).loss, model(**packed).loss)
    full = [0, *torch.tensor(packed["row_lengths"]).cumsum(0).tolist()]
    assert [ends for ends, _ in calls[:2]] == [full] * 2 and len(calls) == 5
    kept = attached.last
    assert kept is not None
    short = [int(kept.mask[0, :end].sum()) for end in full]
    assert [ends for ends, _ in calls[2:]] == [short] * 3
