"""The model of a recipe: which of its parameters train (full, LoRA or frozen, by part), its optimizer groups, and its
weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from ..common.deepspeed_compat import complete_size
from ..config import Model, Parts, Recipe
from ..models.loading import WeightsSource, attention_kernel, build_meta_model, read_model
from ..models.quantization import is_linear, make_quantization, modules_kept_precise
from ..models.structure import SCORERS, find_parts, part_of, unwrap_model

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def choose_parameters(model: Any, parts: Parts) -> Any:
    """Freezes and unfreezes parameters in place. With a part in mode lora the result is the model inside PEFT."""
    config = freeze_parameters(model, parts)
    if config is None:
        return model
    from peft import get_peft_model

    # In the dtype of the weights: ZeRO-3 partitions parameters of one dtype only. Master weights in float32 are kept
    # by DeepSpeed or, without it, by `upcast_trainable_to_fp32`.
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def freeze_parameters(model: Any, parts: Parts) -> Any:
    """Freezes and unfreezes parameters in place. Returns PEFT's configuration of the adapters, None where no part has
    mode lora."""
    modes = {name: part.mode for name, part in parts.named().items()}
    belongs = part_of(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(modes[belongs(name)] == "full")
    if "lora" not in modes.values():
        return None
    from peft import LoraConfig

    lora = parts.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        bias=lora.bias,
        target_modules=lora_targets(model, parts),
        modules_to_save=modules_to_save(model, parts) or None,
        task_type="CAUSAL_LM",
    )


def lora_targets(model: Any, parts: Parts) -> list[str]:
    """Full names of the linear layers that get an adapter: all in the parts in mode lora, or those that
    `parts.lora.targets` names; never the output head."""
    belongs, head = part_of(model), unwrap_model(model).get_output_embeddings()
    wanted = [name for name, part in parts.named().items() if part.mode == "lora"]
    linear = [
        name
        for name, module in model.named_modules()
        if is_linear(module) and module is not head and belongs(name) in wanted
    ]
    if parts.lora.targets is None:
        if not linear:
            raise ValueError(f"parts: no linear layer in {', '.join(wanted)} to put an adapter on; use full or frozen")
        return linear
    return _matching(linear, parts.lora.targets, wanted)


def _matching(linear: list[str], targets: tuple[str, ...], wanted: list[str]) -> list[str]:
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
    """Modules that PEFT must train and save next to the adapter: those of the parts in mode full, and those that
    `parts.lora.modules_to_save` names."""
    full = {name for name, part in parts.named().items() if part.mode == "full"}
    if "language" in full:
        raise ValueError(
            "parts: language: full together with lora in another part would keep two copies of the language model; "
            "set language to lora, or the other part to full"
        )
    belongs = part_of(model)
    found: list[str] = []
    for name, module in model.named_modules():  # a module comes before its children
        if not name or isinstance(module, _CONTAINERS) or any(name.startswith(f"{outer}.") for outer in found):
            continue
        owners = {belongs(f"{name}.{parameter}") for parameter, _ in module.named_parameters()}
        if owners and owners <= full:
            found.append(name)
    return found + [name for name in _named_to_save(model, parts) if name not in found]


def _named_to_save(model: Any, parts: Parts) -> list[str]:
    names = {name: module for name, module in model.named_modules() if next(module.parameters(), None) is not None}
    chosen: list[str] = []
    for target in parts.lora.modules_to_save:
        matching = [name for name in names if f".{name}".endswith(f".{target}")]
        if not matching:
            near = difflib.get_close_matches(target, {name.rsplit(".", 1)[-1] for name in names}, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"parts.lora.modules_to_save: no module of the model is named {target}{hint}")
        chosen += matching
    top = unwrap_model(model)
    embeddings = {id(top.get_input_embeddings()), id(top.get_output_embeddings())}
    tied = [name for name in chosen if id(names[name]) in embeddings]
    if tied and top.config.get_text_config(decoder=True).tie_word_embeddings:
        raise ValueError(
            f"parts.lora.modules_to_save: {', '.join(tied)} shares its weight with the other end of the model (tied "
            "embeddings), and a trained copy would untie them; leave it out"
        )
    return chosen


def count_parameters(model: Any) -> dict[str, tuple[int, int]]:
    """Part -> (parameters that train, all parameters); unpartitioned sizes also under ZeRO-3."""
    belongs, found = part_of(model), dict.fromkeys(("vision", "projector", "language"), (0, 0))
    for name, parameter in model.named_parameters():
        if re.search(r"\.original_module\.", name):  # PEFT's frozen copy of a module in modules_to_save
            continue
        size = complete_size(parameter)
        part = belongs(name)
        trained, total = found.get(part, (0, 0))
        found[part] = (trained + size * parameter.requires_grad, total + size)
    return found


def parameter_groups(model: Any, recipe: Recipe, decayed: Collection[str]) -> list[dict[str, Any]]:
    """Optimizer groups: a learning rate for each part, weight decay for the parameters named in `decayed`. No group is
    empty: DeepSpeed refuses those."""
    belongs, groups = part_of(model), dict[tuple[str, bool], dict[str, Any]]()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, decays = belongs(name), name in decayed
        if (part, decays) not in groups:
            rate = _learning_rate(recipe, part)
            decay = recipe.train.weight_decay if decays else 0.0
            groups[part, decays] = {"params": [], "lr": rate, "weight_decay": decay, "part": part}
        groups[part, decays]["params"].append(parameter)
    return list(groups.values())


def _learning_rate(recipe: Recipe, part: str) -> float:
    if part == "scorer":
        return recipe.scorer.learning_rate
    return recipe.parts.named()[part].learning_rate or recipe.train.learning_rate


def learning_rates(optimizer: Any) -> dict[str, float]:
    """Part -> its current learning rate."""
    return {group["part"]: float(group["lr"]) for group in optimizer.param_groups if "part" in group}


def trainable_meta_model(recipe: Recipe) -> Any:
    """The model on the meta device, its parameters chosen. Within a second it finds an unknown folder, a model that
    cannot be reduced, and LoRA targets that match nothing; and it has the size of every parameter."""
    resolve_attention(recipe.model)
    model = build_meta_model(_weights(recipe.model), "model.path")
    depth = len(find_parts(model).layers)
    for reducer in recipe.reduction.reducers():
        if reducer.layer >= depth:
            raise ValueError(
                f"reduction.layer: {reducer.layer} given, expected 0 to {depth - 1}: the model has {depth} layers"
            )
    model = choose_parameters(model, recipe.parts)
    with torch.device("meta"):
        add_new_scorers(model, recipe)
    return model


def add_new_scorers(model: Any, recipe: Recipe) -> None:
    """New scorers where the recipe has some, on the default device: so that their parameters are counted."""
    stages = [reducer for reducer in recipe.reduction.reducers() if "scorer" in reducer.required_inputs()]
    if stages:
        parts = find_parts(model)
        found = {f"layer_{r.layer}": r.make_scorer(parts.text_config.hidden_size) for r in stages}
        parts.top.add_module(SCORERS, nn.ModuleDict(found).requires_grad_(recipe.scorer.train))


def load_model(recipe: Recipe) -> Any:
    model = recipe.model
    dtype = _DTYPES[recipe.train.precision] if model.dtype == "auto" else model.dtype
    kernel, quantization = resolve_attention(model), None
    if model.quantization != "none":
        precise = modules_kept_precise(
            build_meta_model(_weights(model), "model.path"), recipe.parts.lora.modules_to_save
        )
        computed_in = getattr(torch, _DTYPES[recipe.train.precision])
        quantization = make_quantization(model.quantization, computed_in, precise)
    return read_model(_weights(model), dtype, kernel, quantization=quantization)


def _weights(model: Model) -> WeightsSource:
    return WeightsSource(model.path, model.revision, model.trust_remote_code)


def resolve_attention(model: Model) -> str:
    """The attention implementation to use. Raises ValueError if the requested one is not available here."""
    return attention_kernel(model.attn_implementation, "model.attn_implementation")


def upcast_trainable_to_fp32(model: Any) -> None:
    """DeepSpeed keeps master weights in float32; without it, the parameters that train are float32 themselves."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
