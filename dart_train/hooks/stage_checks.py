"""Which stages a model can have: problems that are known before a forward, all reported at once."""

from __future__ import annotations

from collections.abc import Sequence

from ..models.structure import ModelParts
from ..reduction import KeepAll, Reducer, TowerDART
from .scorers import layers_with_rows
from .selection_inputs import observed_layer


def split_stages(given: Reducer | TowerDART | Sequence[Reducer | TowerDART]) -> tuple[list[TowerDART], list[Reducer]]:
    """The stage in the tower, and those in the language model, which keeps everything where none is given."""
    stages = [given] if isinstance(given, Reducer | TowerDART) else list(given)
    towers = [stage for stage in stages if isinstance(stage, TowerDART)]
    if len(towers) > 1 or (towers and stages[0] is not towers[0]):
        raise ValueError("expected at most one TowerDART, before all other stages")
    others = [stage for stage in stages if not isinstance(stage, TowerDART)]
    return towers, others or ([KeepAll()] if towers else [])


def check_stages(stages: list[Reducer], parts: ModelParts) -> list[Reducer]:
    if not stages or not all(isinstance(stage, Reducer) for stage in stages):
        raise ValueError(f"expected a reducer or a list of reducers, such as DART(keep=64); given {stages!r}")
    layers, depth = [stage.layer for stage in stages], len(parts.layers)
    problems = [f"layer={k}: expected 0 to {depth - 1}, the model has {depth} layers" for k in layers if k >= depth]
    if layers != sorted(set(layers)):
        problems.append(f"stages at layers {layers}: expected each to come after the one before")
    if len({stage.per for stage in stages}) > 1:
        problems.append("all stages must budget per the same thing: give each the same `per`")
    problems += [
        _no_attention_before(stage, parts)
        for number, stage in enumerate(stages)
        if stage.layer < depth
        and "attention" in stage.required_inputs()
        and observed_layer(parts, stages, number) is None
    ]
    problems += _keys_from_another_stage(stages, parts)
    problems += [
        f"{type(stage).__name__} at layer {stage.layer}: the attention of this layer cannot be seen before it runs; "
        "use row='previous'"
        for stage in stages
        if "own_attention" in stage.required_inputs() and stage.layer not in layers_with_rows(parts, stage.layer)
    ]
    if any(stage.positions == "compact" for stage in stages):
        problems += _why_not_compact(parts)
    if problems:
        raise ValueError("; ".join(problems))
    return stages


def _keys_from_another_stage(stages: Sequence[Reducer], parts: ModelParts) -> list[str]:
    """A layer that shares the keys of an earlier one must see them reduced as itself."""
    problems = []
    for stage in stages:
        split = {i: parts.key_source(i) for i in range(stage.layer, len(parts.layers))}
        sources = sorted({source for source in split.values() if source < stage.layer})
        if sources:
            sharing = [layer for layer, source in split.items() if source in sources]
            problems.append(
                f"layer={stage.layer}: layers {sharing[0]} to {sharing[-1]} use the keys of layers {sources}, which "
                f"run before the reduction; use layer <= {sources[0]}"
            )
    return problems


def _why_not_compact(parts: ModelParts) -> list[str]:
    problem = "positions='compact': expected a model whose positions are 0, 1, 2, ...; "
    model, rope = parts.top.config.model_type, getattr(parts.text_config, "rope_parameters", None) or {}
    found = []
    if parts.family.own_positions:
        found.append(f"{problem}{model} may compute them from the image's grid. Use positions='original'")
    kinds = {str(settings.get("rope_type")) for settings in (rope, *rope.values()) if isinstance(settings, dict)}
    if changing := sorted(kinds & {"dynamic", "longrope"}):
        found.append(
            f"{problem}the rotary embedding of {model} ({changing[0]}) depends on the length. Use positions='original'"
        )
    if parts.family.bidirectional_images:
        found.append(f"{problem}image tokens of {model} attend to each other by place. Use positions='original'")
    return found


def _no_attention_before(stage: Reducer, parts: ModelParts) -> str:
    name, layers = type(stage).__name__, parts.attention_layers()
    if layers[0] == 0:
        return f"{name} at layer {stage.layer}: there is no attention before the first layer; use layer >= 1"
    return (
        f"{name} at layer {stage.layer}: no layer before it has attention weights to select by; this model's layers "
        f"{layers} have them: use the layer after one of these"
    )
