"""`load(path)`: a model, its processor, and its reduction attached as it was trained. `resolve` does all of it but the
weights, and reports everything that is wrong in one error."""

from __future__ import annotations

import types
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..common.io import EXPECTED_ERRORS, ProblemCollector
from ..hooks import Attached, attach
from ..hooks.engine import Output
from ..models.loading import (
    WeightsSource,
    attention_kernel,
    build_meta_model,
    choose_device,
    missing_weights,
    read_model,
)
from ..models.processors import load_processor
from ..reduction import DART, FewerPixels, Reducer, TowerDART, from_config
from ..reduction.budget import Keep
from ..reduction.reducer_file import REDUCER_FILE, ReducerFile, read_reducer_file
from ..reduction.trained_budgets import FULL, TrainedBudgets, describe_budgets
from .locate import CONFIG, CheckpointSelector, ModelLocation, locate
from .provenance import PROVENANCE_FILE, Provenance, UntrainedBudget, read_provenance
from .scorer_file import check_scorers, load_scorers

# "trained" (or ...): as trained; None: no reduction; else a reducer, several stages, their configuration, or the name
# of a method.
ReducerSpec = types.EllipsisType | None | str | Reducer | TowerDART | Mapping[str, Any] | Sequence[Any]
TRAINED = "trained"


@dataclass(frozen=True)
class ResolvedModel:
    """A model that can be loaded. `trained`: the reduction it was trained with, and `trained_tower` its stage in the
    vision tower; None: there is no reducer.json, or no such stage. `reducers` and `tower` are attached."""

    location: ModelLocation
    source: WeightsSource
    provenance: Provenance
    processor: Any
    trained: Sequence[Reducer] | None
    reducers: Sequence[Reducer]
    attn_implementation: str
    trained_tower: TowerDART | None = None
    tower: TowerDART | None = None

    @property
    def all_stages(self) -> list[Reducer | TowerDART]:
        """What `attach` takes; empty: nothing is attached."""
        return [*([] if self.tower is None else [self.tower]), *self.reducers]

    @property
    def dtype(self) -> str:
        """As saved in an export; what training computed in for a run (whose weights may be float32 copies) and for an
        adapter."""
        exported = (self.location.folder / PROVENANCE_FILE).is_file() and not self.location.is_adapter
        return "auto" if exported else self.provenance.trained_dtype or "auto"


@dataclass
class Loaded:
    """`attached` is None where nothing is reduced. `provenance`: what is known of the training."""

    model: Any
    processor: Any
    attached: Attached | None
    provenance: Provenance


def load(
    path: str | Path,
    reducer: ReducerSpec = TRAINED,
    *,
    keep: Keep | Sequence[Keep] | None = None,
    dtype: torch.dtype | str | None = None,
    attn_implementation: str = "auto",
    device: str | torch.device | None = None,
    output: Output = "expand",
    checkpoint: CheckpointSelector = None,
    base: str | Path | None = None,
    merge: bool = True,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """A model ready to answer, its reduction attached as it was trained.

    path: an exported folder, a run, one of its checkpoints, the folder of any model, or a hub id.
    reducer: "trained": the reduction it was trained with; None: no reduction; or another one: a reducer, several
        stages, their configuration, or the name of a method.
    keep: another budget for it. A budget that the model was not trained at gives a warning, `UntrainedBudget`.
    dtype: None: what training computed in, or as saved. device: None: the GPU if there is one.
    checkpoint: of a run, its step, `newest` or `best`; None: the best if the run was validated, else the newest.
    base: where an adapter's base model is now, if it was moved. merge: False leaves the adapter inside PEFT.
    Raises a ValueError with everything that is wrong, before any weight is read.
    """
    chosen = choose_device(device)
    resolved = resolve(
        path,
        reducer,
        keep=keep,
        attn_implementation=attn_implementation,
        checkpoint=checkpoint,
        base=base,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    warn_if_untrained(resolved.reducers, resolved.provenance.budgets)
    model = read_model(resolved.source, dtype or resolved.dtype, resolved.attn_implementation, merge)
    model = model.to(chosen)
    load_scorers(resolved.location.folder, model)
    attached = attach(model, resolved.all_stages, output=output) if resolved.all_stages else None
    return Loaded(model, resolved.processor, attached, resolved.provenance)


def resolve(
    path: str | Path,
    reducer: ReducerSpec = TRAINED,
    *,
    keep: Keep | Sequence[Keep] | None = None,
    attn_implementation: str = "auto",
    checkpoint: CheckpointSelector = None,
    base: str | Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ResolvedModel:
    """Everything that `load`, which has the same arguments, knows before it reads weights."""
    location = locate(path, checkpoint, revision)
    problems = ProblemCollector(errors=(*EXPECTED_ERRORS, KeyError, TypeError))  # damaged files, other versions
    provenance = problems.collect(lambda: read_provenance(location)) or Provenance(location.source)
    attention = problems.collect(lambda: attention_kernel(attn_implementation))
    processor = problems.collect(lambda: _load_processor(location, provenance, trust_remote_code))
    saved = ProblemCollector(errors=problems.errors)
    file = saved.collect(lambda: read_reducer_file(location.folder)) or ReducerFile(())
    trained = list(file.stages) if (location.folder / REDUCER_FILE).is_file() else None
    tower, reducers = select_tower(file.tower, reducer), None
    if not saved.problems or not _is_trained(reducer):
        reducers = problems.collect(lambda: select_reducer(trained, reducer, keep))
    else:
        problems.add(f"{each}; or load it with another reducer, or reducer=None" for each in saved.problems)
    source = problems.collect(lambda: _weights_source(location, provenance, base, trust_remote_code))
    if source is not None:
        stages: list[Reducer | TowerDART] = [*([] if tower is None else [tower]), *(reducers or [])]
        problems.collect(lambda: _check_reduction_fits(source, stages, location.folder))
    if len(problems.problems) == 1:
        raise ValueError(f"{path} cannot be loaded: {problems.problems[0]}")
    problems.raise_if_any(f"{path} cannot be loaded")
    assert source is not None and attention is not None and reducers is not None
    return ResolvedModel(location, source, provenance, processor, trained, reducers, attention, file.tower, tower)


def _load_processor(location: ModelLocation, provenance: Provenance, trust_remote_code: bool) -> Any:
    """The one next to the weights; an adapter without one uses its base model's."""
    try:
        return load_processor(str(location.folder), trust_remote_code=trust_remote_code)
    except (ValueError, OSError) as error:
        if not location.is_adapter or provenance.base_model is None:
            raise ValueError(f"no processor: {str(error).strip().splitlines()[0]}") from error
        return load_processor(str(locate(provenance.base_model, None, provenance.base_revision).folder))


def _weights_source(
    location: ModelLocation, provenance: Provenance, base: str | Path | None, trust_remote_code: bool
) -> WeightsSource:
    if not location.is_adapter:
        if base is not None:
            raise ValueError(f"base={str(base)!r} was given, but {location.folder} holds full weights: leave it out")
        _check_weight_files(location)
        return WeightsSource(location.source, location.revision, trust_remote_code)
    wanted = provenance.base_model if base is None else str(base)
    if wanted is None:
        raise ValueError("the adapter does not name its base model; give the base model's folder or hub id as base")
    try:
        base_location = locate(wanted, None, provenance.base_revision if base is None else None)
    except ValueError as error:
        raise ValueError(f"the adapter's base model was not found: {error}; give where it is now as base") from error
    _check_weight_files(base_location)
    if base_location.is_adapter:
        raise ValueError(f"the adapter's base model {wanted} is an adapter itself; export that one first")
    return WeightsSource(base_location.source, base_location.revision, trust_remote_code, location.source)


def _check_weight_files(location: ModelLocation) -> None:
    if location.folder != Path(location.source):
        return  # on a hub, whose weights are downloaded when the model is loaded
    missing = missing_weights(location.folder) if (location.folder / CONFIG).is_file() else f"{CONFIG} is missing"
    if missing and not location.is_adapter:
        raise ValueError(f"{location.folder}: {missing}")


def _check_reduction_fits(source: WeightsSource, stages: Sequence[Reducer | TowerDART], folder: Path) -> None:
    """On a model without weights."""
    model = build_meta_model(source)
    if stages:
        with attach(model, stages) as attached:
            if attached.scorers:
                check_scorers(folder, attached.scorers, model)


def _is_trained(spec: ReducerSpec) -> bool:
    return spec is ... or (isinstance(spec, str) and spec == TRAINED)


def select_reducer(
    trained: Sequence[Reducer] | None, spec: ReducerSpec, keep: Keep | Sequence[Keep] | None
) -> list[Reducer]:
    """The stages to attach. keep: another budget, one for each stage; for a model that was not trained with a
    reduction, a budget alone means DART at it."""
    if _is_trained(spec):
        selected = list(trained or ([DART()] if keep is not None else []))
        return selected if keep is None else _with_budgets(selected, keep)
    if spec is None:
        selected = []
    elif isinstance(spec, str):
        selected = _by_name(spec, trained or [], keep)
    else:
        stages = [stage for stage in _as_list(spec) if not isinstance(stage, TowerDART)]
        selected = [stage if isinstance(stage, Reducer) else from_config(stage) for stage in stages]
    if any(isinstance(stage, FewerPixels) for stage in selected):
        raise ValueError(
            "fewer_pixels makes the images smaller and works at the processor: load with reducer=None, then "
            "dart_train.models.resize.fewer_pixels(processor, keep)"
        )
    return selected if keep is None else _with_budgets(selected, keep)


def select_tower(trained: TowerDART | None, spec: ReducerSpec) -> TowerDART | None:
    """The trained one for the trained reduction and for a method by its name; else the one that is given."""
    if _is_trained(spec) or (isinstance(spec, str) and spec != "none"):
        return trained
    given = [] if spec is None or isinstance(spec, str) else _as_list(spec)
    return next((stage for stage in given if isinstance(stage, TowerDART)), None)


def _as_list(spec: Any) -> list[Any]:
    return [spec] if isinstance(spec, Reducer | TowerDART | Mapping) else list(spec)


def _by_name(name: str, trained: Sequence[Reducer], keep: object) -> list[Reducer]:
    """The method with its trained options if it is the trained method; else at the trained layer and budget."""
    if name == "none":
        return []
    default = from_config({"method": name})
    if trained and all(type(stage) is type(default) for stage in trained):
        return list(trained)
    if len(trained) == 1:
        return [replace(default, layer=trained[0].layer, keep=trained[0].keep, per=trained[0].per)]
    if keep is None and name != "keep_all":
        raise ValueError(f"reducer={name!r}: how many tokens to keep is not known; give keep=, such as 64 or 0.222")
    return [default]


def _with_budgets(stages: Sequence[Reducer], keep: Keep | Sequence[Keep]) -> list[Reducer]:
    budgets = list(keep) if isinstance(keep, Sequence) else [keep]
    if not stages:
        raise ValueError(f"keep={keep!r} was given, but no reduction is attached; give a reducer, such as 'dart'")
    if len(budgets) != len(stages):
        raise ValueError(f"keep={keep!r}: {len(budgets)} budgets for {len(stages)} stages; give one for each stage")
    return [replace(stage, keep=budget) for stage, budget in zip(stages, budgets, strict=True)]


def warn_if_untrained(stages: Sequence[Reducer], trained: TrainedBudgets | None) -> None:
    """A budget that the model was not trained at is allowed, with a warning."""
    served: tuple[Keep, ...] = tuple(stage.keep for stage in stages) or FULL
    if trained is not None and not trained.include(served):
        message = f"served at {describe_budgets([served])}, but trained at {trained}"
        warnings.warn(message, UntrainedBudget, stacklevel=3)
