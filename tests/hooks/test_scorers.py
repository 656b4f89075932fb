"""Trained scorers: they learn from the attention of the full-token forward, and they are weights of the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import DART, attach
from dart_train.hooks import scorers
from dart_train.models.structure import SCORERS
from dart_train.reduction import Learned
from dart_train.reduction.scorer import scorer_loss, top_overlap
from tests.laws.cases import NAMES, batch_of, model_of
from tests.zoo import conversation, encode, sentence

ANSWER = 3  # rows of attention from each answer


def scorer_weights(model: Any) -> list[Tensor]:
    return list(getattr(model, SCORERS).parameters())


def eager_attention(model: Any, batch: dict[str, Tensor], layer: int, row: int) -> Tensor:
    """[L, L] of one sample, mean over heads and over layers >= `layer`, by the model's own eager attention."""
    out = model(**batch, output_attentions=True, use_cache=False)
    return torch.stack([a[row].float().mean(0) for a in out.attentions[layer:]]).mean(0)


def recorded(model: Any, batch: dict[str, Tensor], reducer: Learned) -> tuple[Any, list[Tensor]]:
    """The state of a forward at full tokens, and the attention [R, S] recorded in each layer."""
    with attach(model, reducer) as attached, attached.with_scorer_loss(ANSWER):
        model(**batch, use_cache=False)
        training = attached._scorer_training
        assert training is not None and training.full is not None
        return training.full, [training.rows[layer] for layer in sorted(training.rows)]


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_target_is_the_eager_attention_of_prompt_and_answer(name: str) -> None:
    batch = batch_of(name, (1,), labels=True)
    state, rows = recorded(model_of(name), batch, Learned(keep=1.0))
    found = torch.stack(rows).mean(0)[0]
    attention = eager_attention(model_of(name, "eager"), batch, 2, 0)
    supervised = (batch["labels"][0] != -100).nonzero().flatten().tolist()
    answer = [p for p in supervised[:ANSWER] if p - supervised[0] < ANSWER]
    expected = attention[[supervised[0] - 1, *answer]].mean(0)
    assert state.kept.keeps_all
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_bring_the_scores_closer_to_the_attention(name: str) -> None:
    model, batch = model_of(name), batch_of(name, labels=True)
    with attach(model, Learned(keep=1.0)) as attached, attached.with_scorer_loss():
        optimizer = torch.optim.AdamW(scorer_weights(model), lr=3e-3)
        losses = []
        for _ in range(8):
            with attached.skip_model_loss():
                model(**batch, use_cache=False)
            loss = attached.scorer_loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_loss_reaches_every_weight_of_the_scorer_and_none_of_the_model() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    with attach(model, Learned(keep=1.0)) as attached, attached.with_scorer_loss():
        model(**batch, use_cache=False)
        attached.scorer_loss().backward()
        with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
        assert with_gradient == {name for name, _ in model.named_parameters() if name.startswith(SCORERS)}
    model.zero_grad()


@torch.no_grad()
def test_each_stage_learns_from_its_own_layer_on() -> None:
    model, batch = model_of("llava"), batch_of("llava", (1,), labels=True)
    stages = [Learned(layer=1, keep=1.0), Learned(layer=3, keep=1.0)]
    with attach(model, stages) as attached, attached.with_scorer_loss(ANSWER):
        model(**batch, use_cache=False)
        training = attached._scorer_training
        assert training is not None and training.full is not None
        rows, expected = training.rows, []
        for reducer, stage in zip(stages, training.full.stages, strict=True):
            assert stage.scores is not None
            attention = torch.stack([row for layer, row in rows.items() if layer >= reducer.layer]).mean(0)
            target = attention.gather(1, stage.scores.positions)  # one row, no padding: slots are positions
            expected.append(scorer_loss(stage.scores.logits, target, stage.scores.valid))
        assert min(rows) == 1 and max(rows) >= 3
        torch.testing.assert_close(attached.scorer_loss(), torch.stack(expected).mean())


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_loss_of_a_padded_batch_is_the_mean_of_its_samples(name: str) -> None:
    rows = [conversation(1, sentence(3 + 4 * seed, seed), sentence(1 + seed, 50 + seed), seed)[0] for seed in (0, 1)]
    model = model_of(name)
    with attach(model, Learned(keep=1.0)) as attached, attached.with_scorer_loss():

        def loss_of(batch: dict[str, Tensor]) -> Tensor:
            model(**batch, use_cache=False)
            return attached.scorer_loss()

        alone = torch.stack([loss_of(encode(name, [row], labels=True)) for row in rows]).mean()
        for side in ("left", "right"):
            torch.testing.assert_close(loss_of(encode(name, rows, side, labels=True)), alone)


def test_teacher_at_full_tokens_teaches_a_reduced_student() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    with attach(model, Learned(keep=8)) as attached, attached.with_scorer_loss():
        with attached.with_teacher(1.0):
            model(**batch, use_cache=False)
        with_teacher = attached.scorer_loss()
        assert attached.last is not None and attached.last.visual_after[0] == 8
        attached.set_keep(1.0)
        model(**batch, use_cache=False)
        torch.testing.assert_close(attached.scorer_loss(), with_teacher)


def test_without_a_full_forward_there_is_nothing_to_learn_from() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    with attach(model, Learned(keep=8)) as attached, attached.with_scorer_loss():
        model(**batch, use_cache=False)
        with pytest.raises(RuntimeError, match="no forward kept all tokens"):
            attached.scorer_loss()


def test_batch_without_images_gives_zero_gradients_to_every_scorer_weight() -> None:
    model, batch = model_of("llava"), batch_of("llava", (0, 0), labels=True)
    with attach(model, Learned(keep=1.0)) as attached, attached.with_scorer_loss():
        model(**batch, use_cache=False)
        loss = attached.scorer_loss()
        loss.backward()
        assert loss.item() == 0.0
        assert all(w.grad is not None and not w.grad.any() for w in scorer_weights(model))
    model.zero_grad()


def test_each_stage_has_a_scorer_and_loss() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    stages = [Learned(layer=1, keep=1.0), Learned(layer=3, keep=1.0)]
    with attach(model, stages) as attached, attached.with_scorer_loss():
        assert set(attached.scorers) == {1, 3}
        model(**batch, use_cache=False)
        attached.scorer_loss().backward()
        assert all(weight.grad is not None for weight in scorer_weights(model))
    model.zero_grad()


def test_scorer_is_in_the_state_dict_while_attached_and_leaves_no_trace() -> None:
    model = model_of("llava")
    before = set(model.state_dict())
    with attach(model, Learned(keep=8)):
        added = set(model.state_dict()) - before
        assert added and all(name.startswith(f"{SCORERS}.layer_2.") for name in added)
    assert set(model.state_dict()) == before and not hasattr(model, SCORERS)


def test_scorer_already_on_the_model_is_used_again_or_refused() -> None:
    model = copy.deepcopy(model_of("llava"))
    attached = attach(model, Learned(keep=8))
    scorers = getattr(model, SCORERS)
    attached.remove()
    model.add_module(SCORERS, scorers)
    with attach(model, Learned(keep=16)) as again:
        assert again.scorers[2] is scorers["layer_2"]
    assert getattr(model, SCORERS) is scorers
    with pytest.raises(ValueError, match="other weights"):
        attach(model, Learned(keep=8, guidance="none"))


def test_methods_without_a_scorer_have_none_to_train() -> None:
    with (
        attach(model_of("llava"), DART(keep=8)) as attached,
        pytest.raises(ValueError, match="no stage has a scorer"),
        attached.with_scorer_loss(),
    ):
        pass


@torch.no_grad()
def test_attention_is_recorded_in_float32_under_autocast() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    with torch.autocast("cpu", torch.bfloat16):
        _, rows = recorded(model, batch, Learned(keep=1.0))
    _, expected = recorded(model, batch, Learned(keep=1.0))
    assert {row.dtype for row in rows} == {torch.float32}
    torch.testing.assert_close(torch.stack(rows), torch.stack(expected), atol=0.03, rtol=0.1)  # its inputs are bfloat16


def test_attention_that_cannot_be_recorded_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "dispatches_attention", lambda attention: False)
    with (
        attach(model_of("llava"), Learned(keep=8)) as attached,
        pytest.raises(ValueError, match=r"LlamaAttention does not call its kernel .* scorer\.task 1"),
        attached.with_scorer_loss(),
    ):
        pass


def test_overlap_is_the_share_of_the_teachers_top_tokens() -> None:
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    target = torch.tensor([[6.0, 5, 4, 3, 2, 1], [4.0, 3, 2, 1, 9, 9]])
    assert top_overlap(target, target, valid, 0.5).item() == 1.0
    assert top_overlap(-target, target, valid, 2).item() == 0.0
    scores = torch.tensor([[6.0, 1, 4, 3, 2, 5], [1.0, 2, 3, 4, 0, 0]])
    assert top_overlap(scores, target, valid, 2).item() == pytest.approx((1 / 2 + 0) / 2)


def test_overlap_of_a_forward_rises_as_the_scorer_learns() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    with attach(model, Learned(keep=1.0)) as attached, attached.with_scorer_loss(served=[8]):
        optimizer = torch.optim.AdamW(scorer_weights(model), lr=1e-2)
        overlaps = []
        for _ in range(25):
            with attached.skip_model_loss():
                model(**batch, use_cache=False)
            loss = attached.scorer_loss()
            overlap = attached.scorer_overlap()
            assert overlap is not None and 0.0 <= overlap.item() <= 1.0
            overlaps.append(overlap.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert overlaps[-1] > overlaps[0]
