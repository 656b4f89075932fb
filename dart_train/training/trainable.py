"""The model of a recipe: what can be known without its weights, and the weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from ..config import Model, Parts, Recipe
from ..models.loading import Source, attention_kernel, build_meta_model, read_config, read_model
from ..models.structure import find_parts, part_of, unwrap_model

# What of each part of the model trains.

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def choose_parameters(model: Any, parts: Parts) -> Any:
    """Freezes and unfreezes in place; with a part in mode lora the model comes back inside PEFT."""
    modes = {name: part.mode for name, part in parts.named().items()}
    belongs = part_of(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(modes[belongs(name)] == "full")
    if "lora" not in modes.values():
        return model
    from peft import LoraConfig, get_peft_model

    lora = parts.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias=lora.bias,
        target_modules=lora_targets(model, parts),
        modules_to_save=modules_to_save(model, parts) or None,
        task_type="CAUSAL_LM",
    )
    # As the weights are: ZeRO-3 spreads parameters of one dtype only, and masters in float32 are kept by DeepSpeed
    # or, without it, by `upcast_trainable_to_fp32`.
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def lora_targets(model: Any, parts: Parts) -> list[str]:
    """Full names of the linear layers that get an adapter: all of the parts in mode lora, or those that
    `parts.lora.targets` names; never the head."""
    belongs, head = part_of(model), unwrap_model(model).get_output_embeddings()
    wanted = [name for name, part in parts.named().items() if part.mode == "lora"]
    linear = [
        name
        for name, module in model.named_modules()
        # Exactly nn.Linear: the output projection inside nn.MultiheadAttention is never called as a module.
        if type(module) is nn.Linear and module is not head and belongs(name) in wanted
    ]
    if parts.lora.targets is None:
        if not linear:
            raise ValueError(f"parts: no linear layer in {', '.join(wanted)} to put an adapter on; use full or frozen")
        return linear
    return _named(linear, parts.lora.targets, wanted)


def _named(linear: list[str], targets: tuple[str, ...], wanted: list[str]) -> list[str]:
    found = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in targets}
    missing = [target for target in targets if not found[target]]
    if missing:
        known = sorted({name.rsplit(".", 1)[-1] for name in linear})
        near = [difflib.get_close_matches(target, known, n=1) for target in missing]
        hint = f"; did you mean {', '.join(match[0] for match in near if match)}?" if any(near) else ""
        raise ValueError(
            f"parts.lora.targets: no linear layer named {', '.join(missing)} in {', '.join(wanted)}; "
            f"there are {', '.join(known)}{hint}"
        )
    return [name for name in linear if any(name in names for names in found.values())]


def modules_to_save(model: Any, parts: Parts) -> list[str]:
    """Modules of parts in mode full that PEFT must train and save beside the adapter."""
    full = {name for name, part in parts.named().items() if part.mode == "full"}
    if "language" in full:
        raise ValueError(
            "parts: language full beside another part in lora would hold the language model twice; "
            "set language to lora, or the other part to full"
        )
    belongs = part_of(model)
    names = {name: {belongs(f"{name}.{p}") for p, _ in module.named_parameters()} for name, module in _modules(model)}
    return list(_topmost(name for name, owners in names.items() if owners and owners <= full))


def _modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    return ((name, m) for name, m in model.named_modules() if name and not isinstance(m, _CONTAINERS))


def _topmost(names: Iterator[str]) -> Iterator[str]:
    """Those that lie in none of the others; a module comes before what is inside it."""
    last: list[str] = []
    for name in names:
        if not any(name.startswith(f"{outer}.") for outer in last):
            last.append(name)
            yield name


def counts(model: Any) -> dict[str, tuple[int, int]]:
    """Part -> (parameters that train, all parameters), whole sizes also under ZeRO-3."""
    belongs, found = part_of(model), dict.fromkeys(("vision", "projector", "language"), (0, 0))
    for name, parameter in model.named_parameters():
        if re.search(r"\.original_module\.", name):  # PEFT's copy of what it trains whole
            continue
        size = int(getattr(parameter, "ds_numel", parameter.numel()))
        training, whole = found[belongs(name)]
        found[belongs(name)] = (training + size * parameter.requires_grad, whole + size)
    return found


# Optimizer groups: a learning rate for each part, weight decay for matrices only.


def parameter_groups(model: Any, recipe: Recipe, decayed: Collection[str]) -> list[dict[str, Any]]:
    """decayed: names of the parameters that weight decay is for. No group is empty: DeepSpeed takes none."""
    belongs, groups = part_of(model), dict[tuple[str, bool], dict[str, Any]]()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, decays = belongs(name), name in decayed
        group = groups.setdefault((part, decays), _group(recipe, part, decays))
        group["params"].append(parameter)
    return list(groups.values())


def _group(recipe: Recipe, part: str, decays: bool) -> dict[str, Any]:
    rate = recipe.parts.named()[part].learning_rate or recipe.train.learning_rate
    return {"params": [], "lr": rate, "weight_decay": recipe.train.weight_decay if decays else 0.0, "part": part}


def learning_rates(optimizer: Any) -> dict[str, float]:
    """Part -> its present learning rate."""
    return {group["part"]: float(group["lr"]) for group in optimizer.param_groups if "part" in group}


_HALF = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def skeleton(recipe: Recipe) -> Any:
    """The model without weights, its parameters chosen: finds an unknown folder, a model that cannot be reduced and
    adapters with no place in a second, and knows every parameter's size."""
    attention(recipe.model)
    given = recipe.model
    model = build_meta_model(read_config(given.path, given.revision, given.trust_remote_code, "model.path"))
    depth = len(find_parts(model).layers)
    for reducer in recipe.reduction.reducers():
        if reducer.layer >= depth:
            raise ValueError(f"reduction.layer: {reducer.layer} given, the model has {depth} layers: 0 to {depth - 1}")
    return choose_parameters(model, recipe.parts)


def load_model(recipe: Recipe) -> Any:
    model = recipe.model
    dtype = _HALF[recipe.train.precision] if model.dtype == "auto" else model.dtype
    return read_model(Source(model.path, model.revision, model.trust_remote_code), dtype, attention(model))


def attention(model: Model) -> str:
    """The kernel to use; one that is asked for and missing is told before any weight is read."""
    return attention_kernel(model.attn_implementation, "model.attn_implementation")


def upcast_trainable_to_fp32(model: Any) -> None:
    """Without DeepSpeed nobody keeps float32 copies of half-precision weights: those that train are the copies."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
