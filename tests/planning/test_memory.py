"""What is computed without memory is what torch allocates and autograd saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaConfig

from dart_train import KeepAll, attach
from dart_train.planning.costs import activation_memory, static_memory
from dart_train.planning.probe import Probe
from dart_train.planning.setup import TrainingSetup
from dart_train.profiling.flops import SavedActivations, layer_flops
from dart_train.training.trainable import choose_parameters
from tests.planning.cases import CPU, FIXED, encode, inputs_of, recipe_of
from tests.zoo import FAMILIES

MODES = {
    "lora": ["parts.language.mode=lora"],
    "full": ["parts.language.mode=full"],
    "projector": ["parts.language.mode=frozen"],
}


@pytest.mark.parametrize("mode", MODES)
def test_static_memory_is_what_torch_allocates(text: str, mode: str) -> None:
    inputs = inputs_of(text, *MODES[mode], rows=4)
    model = choose_parameters(FAMILIES["llava"].model(), inputs.recipe.parts).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    batch = encode(inputs, [0, 1])
    model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    optimizer.step()
    state = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, torch.Tensor)]
    assert static_memory(inputs.model, inputs.setup) == {
        "weights": size_of(model.parameters()),
        "gradients": size_of(weight.grad for weight in model.parameters() if weight.grad is not None),
        "optimizer": size_of(state),
    }


def size_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_each_zero_stage_shards_one_more_part(text: str) -> None:
    def at(stage: int, *overrides: str) -> dict[str, int]:
        setup = TrainingSetup.of(
            recipe_of(text, f"train.zero_stage={stage}", "train.precision=bf16", *overrides), ranks=4
        )
        return static_memory(setup.meta_model(), setup)

    alone = at(0)
    trained = alone["gradients"] // 2
    assert alone["optimizer"] == pytest.approx(12 * trained, rel=0.01)  # two moments and a copy, in float32
    for stage, shared in enumerate([(), ("optimizer",), ("optimizer", "gradients"), tuple(alone)]):
        assert at(stage) == {part: size // (4 if part in shared else 1) for part, size in alone.items()}
    assert at(2, "train.offload_optimizer=true")["optimizer"] == 0
    assert at(3, "train.offload_parameters=true")["weights"] == 0


def test_backend_decides_what_is_shared(text: str) -> None:
    """In float32 FSDP2 keeps what ZeRO-3 keeps, and DDP what one process does."""

    def static(*overrides: str, ranks: int = 4) -> dict[str, int]:
        setup = TrainingSetup.of(recipe_of(text, "train.precision=fp32", *overrides), ranks=ranks)
        return static_memory(setup.meta_model(), setup)

    assert static("train.backend=fsdp2") == static("train.zero_stage=3")
    assert static("train.backend=ddp") == static("train.backend=fsdp2", ranks=1) == static(ranks=1)


@pytest.mark.parametrize(("name", "mode"), [("llava", "full"), ("qwen3_vl", "lora"), ("gemma3", "lora")])
def test_counted_activations_are_what_autograd_saves(text: str, models: Path, name: str, mode: str) -> None:
    inputs = inputs_of(text, f"model.path={models}/{name}", *MODES[mode], "parts.lora.dropout=0.1", rows=4)
    fake, probe = inputs.setup.fake_layer(inputs.config, "cpu"), Probe(inputs.config, inputs.setup, CPU)
    for rows, length, padded in ((2, 40, True), (3, 33, False)):
        layer, hidden, args, kwargs = probe.layer_call(rows, length, padded)
        kwargs = kwargs if padded else {**kwargs, "attention_mask": None}
        shared = [t for value in kwargs.values() for t in (value if isinstance(value, tuple) else [value])]
        kept = SavedActivations([*layer.parameters(), *(t for t in shared if isinstance(t, torch.Tensor))])
        with kept.recording():
            layer(hidden, *args, **kwargs)
        assert fake.saved_bytes(rows, length, padded) == kept.size


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_activation_memory_is_nearly_all_that_a_forward_keeps(text: str, mode: str) -> None:
    """What is left out is of one layer's size or less: the final norm, masks, the choice itself."""
    inputs = inputs_of(text, *MODES[mode], FIXED, "train.gradient_checkpointing=false", rows=8)
    fake, probe = inputs.setup.fake_layer(inputs.config, "cpu"), Probe(inputs.config, inputs.setup, CPU)
    for load in (inputs.full, *inputs.budgets):
        work, at = load.work, load.work.longest
        batch = encode(inputs, inputs.batches.batches[at].tolist())
        model = choose_parameters(FAMILIES["llava"].model(), inputs.recipe.parts).train()
        kept = SavedActivations([*model.parameters(), *batch.values()])
        with attach(model, load.budget.reducers or KeepAll(layer=0)), kept.recording():
            model(**batch, logits_to_keep=1, use_cache=False)
        counted = activation_memory(
            work, fake, inputs.setup, 1, probe.tower_saved_bytes(batch) / float(work.pixels[at])
        )
        assert 0.94 < sum(counted.values()) / kept.size <= 1


def test_7b_layer_is_counted_without_its_memory(text: str) -> None:
    setup = TrainingSetup.of(recipe_of(text, "parts.language.mode=full"))
    fake, config = setup.fake_layer(LlavaConfig(), "cpu"), LlavaConfig().text_config
    assert fake.saved_bytes(16, 640) == 16 * fake.saved_bytes(1, 640) > 2**30
    forward, backward = layer_flops(setup.build_one_layer(LlavaConfig(), "meta", "eager"))
    weights = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    assert forward.token == pytest.approx(2 * weights) and backward.token == pytest.approx(4 * weights)
    assert forward.pair == pytest.approx(4 * config.hidden_size)
