"""Each part frozen, with adapters, or fully trained: exactly the expected parameters change."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dart_train.config import Lora, Part, Parts, read_recipe
from dart_train.models.structure import part_of
from dart_train.training.trainable import choose_parameters, count_parameters, lora_targets, parameter_groups
from tests.laws.cases import batch_of
from tests.zoo import FAMILIES

MODES = ("frozen", "lora", "full")
COMBINATIONS = [
    modes
    for modes in product(MODES, repeat=3)
    if set(modes) != {"frozen"} and not (modes[2] == "full" and "lora" in modes)
]


def make_parts(vision: str, projector: str, language: str, **lora: Any) -> Parts:
    return Parts(
        vision=Part(mode=vision),
        projector=Part(mode=projector),
        language=Part(mode=language),
        lora=Lora(rank=2, dropout=0.0, **lora),
    )


def trained(name: str) -> bool:
    return "lora_" in name or "modules_to_save" in name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_belongs_to_a_part(family: str) -> None:
    model = FAMILIES[family].model()
    belongs = part_of(model)
    found = {belongs(name) for name, _ in model.named_parameters()}
    assert found == {"vision", "projector", "language"}
    head = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    assert [belongs(name) for name in head] == ["language"]
    assert all(belongs(n) == "vision" for n, _ in model.named_parameters() if "patch_embed" in n)


@pytest.mark.parametrize("modes", COMBINATIONS, ids="-".join)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_exactly_the_chosen_parameters_train(family: str, modes: tuple[str, str, str]) -> None:
    """After one step of plain gradient descent; what the family's forward never reaches cannot move."""
    reached = _reached(family)
    model: Any = choose_parameters(FAMILIES[family].model(), make_parts(*modes))
    belongs, chosen = part_of(model), dict(zip(("vision", "projector", "language"), modes, strict=True))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # the second factor of an adapter starts at zero, so the first one moves a step later
        optimizer.zero_grad()
        model(**batch_of(family, labels=True)).loss.backward()
        optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    adapters = "lora" in modes
    for name in before:
        mode, inside = chosen[belongs(name)], _plain(name)
        full = mode == "full" and (trained(name) or not adapters) and ".original_module." not in name
        should = (mode == "lora" and "lora_" in name) or full
        if "image_newline" in name or (inside not in reached and "lora_" not in name):
            continue
        if "lora_" in name and f"{inside}.weight" not in reached:
            continue
        assert (name in moved) == should, name


def _plain(name: str) -> str:
    """The name before PEFT put its wrappers in."""
    name = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
    return name.replace(".modules_to_save.default", "").split(".lora_")[0]


def _reached(family: str) -> set[str]:
    model = FAMILIES[family].model().train()
    model(**batch_of(family, labels=True)).loss.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_targets_are_all_linear_layers_but_the_head(family: str) -> None:
    model = FAMILIES[family].model()
    targets = lora_targets(model, make_parts("frozen", "full", "lora"))
    decoder = model.get_decoder()
    linear = {id(module) for module in decoder.modules() if isinstance(module, torch.nn.Linear)}
    assert {id(model.get_submodule(name)) for name in targets} == linear


def test_unknown_lora_target_suggests_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"no linear layer named qproj .* did you mean q_proj"):
        lora_targets(FAMILIES["llava"].model(), make_parts("frozen", "full", "lora", targets=("qproj",)))


def test_full_language_with_lora_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="two copies of the language model"):
        choose_parameters(FAMILIES["llava"].model(), make_parts("lora", "full", "full"))


def test_lora_checkpoint_includes_the_projector(tmp_path: Path) -> None:
    model = choose_parameters(FAMILIES["llava"].model(), make_parts("frozen", "full", "lora"))
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert any("multi_modal_projector.linear_1.weight" in name for name in names)
    assert not any("vision_tower" in name or "lm_head" in name for name in names)


def test_parameter_groups_have_the_learning_rate_of_their_part() -> None:
    text = "{model: {path: x}, parts: {vision: {mode: full, learning_rate: 1e-6}, language: {mode: full}}, "
    recipe = read_recipe(text + "train: {learning_rate: 1e-4, weight_decay: 0.1}}")
    model = choose_parameters(FAMILIES["llava"].model(), recipe.parts)
    decayed = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    groups = parameter_groups(model, recipe, decayed)
    assert {(g["part"], g["lr"]) for g in groups} == {("vision", 1e-6), ("projector", 1e-4), ("language", 1e-4)}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert {g["weight_decay"] for g in groups} == {0.1, 0.0}
    assert all((p.ndim > 1) == (g["weight_decay"] > 0) for g in groups for p in g["params"])


def test_parameter_counts_exclude_copies_of_peft() -> None:
    model = FAMILIES["llava"].model()
    own = sum(parameter.numel() for parameter in model.parameters())
    made = count_parameters(choose_parameters(model, make_parts("frozen", "full", "lora")))
    adapters = made["language"][0]
    assert sum(all_ for _, all_ in made.values()) == own + adapters
    assert made["vision"][0] == 0 and made["projector"][0] == made["projector"][1]
