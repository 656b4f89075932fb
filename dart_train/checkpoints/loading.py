"""`load(path)`: a model, its processor, and its reduction attached as it was trained."""

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
from ..models.loading import Source, attention_kernel, bones, missing_weights, read_config, read_model
from ..models.processors import load_processor
from ..reduction import DART, FewerPixels, Reducer, from_config
from ..reduction.budget import Keep
from .locate import CONFIG, Place, Which, locate
from .provenance import NAME as PROVENANCE
from .provenance import Budgets, Provenance, UntrainedBudget, known_of, read_reducers, told

# Everything about a model that can be known, and can be wrong, before a weight is read: told in one message.


@dataclass(frozen=True)
class Found:
    """A model that can be loaded. `trained`: what it was trained with, None where nothing is written."""

    place: Place
    source: Source
    provenance: Provenance
    processor: Any
    trained: Sequence[Reducer] | None
    reducers: Sequence[Reducer]
    kernel: str

    @property
    def dtype(self) -> str:
        """As saved; of a run and of an adapter what training computed in: a run's weights may be float32 copies."""
        exported = (self.place.folder / PROVENANCE).is_file() and not self.place.adapter
        return "auto" if exported else self.provenance.trained_dtype or "auto"


def find(
    path: str | Path,
    reducer: Choice = ...,
    *,
    keep: Keep | Sequence[Keep] | None = None,
    attn_implementation: str = "auto",
    checkpoint: Which = None,
    base: str | Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Found:
    """As `load`, which see, without the weights."""
    place = locate(path, checkpoint, revision)
    problems = ProblemCollector(errors=(*EXPECTED_ERRORS, KeyError, TypeError))  # files of other versions
    known = problems.collect(lambda: known_of(place)) or Provenance(place.source)
    kernel = problems.collect(lambda: attention_kernel(attn_implementation))
    processor = problems.collect(lambda: _processor(place, known, trust_remote_code))
    saved = ProblemCollector(errors=problems.errors)
    trained = saved.collect(lambda: read_reducers(place.folder))
    reducers = None
    if not saved.problems or reducer is not ...:
        reducers = problems.collect(lambda: choose(trained, reducer, keep))
    else:
        problems.add(f"{each}; or load it with another reducer, or reducer=None" for each in saved.problems)
    source = problems.collect(lambda: _source(place, known, base, trust_remote_code))
    if source is not None:
        problems.collect(lambda: _check_model(source, reducers or []))
    if len(problems.problems) == 1:
        raise ValueError(f"{path} cannot be loaded: {problems.problems[0]}")
    problems.raise_if_any(f"{path} cannot be loaded")
    assert source is not None and kernel is not None and reducers is not None
    return Found(place, source, known, processor, trained, reducers, kernel)


def _processor(place: Place, known: Provenance, trust_remote_code: bool) -> Any:
    """The one beside the weights; an adapter that came without one uses its base model's."""
    try:
        return load_processor(str(place.folder), trust_remote_code=trust_remote_code)
    except (ValueError, OSError) as error:
        if not place.adapter or known.base_model is None:
            raise ValueError(f"no processor: {str(error).strip().splitlines()[0]}") from error
        return load_processor(str(locate(known.base_model, None, known.base_revision).folder))


def _source(place: Place, known: Provenance, base: str | Path | None, trust_remote_code: bool) -> Source:
    if not place.adapter:
        if base is not None:
            raise ValueError(f"base={str(base)!r} was given, but the weights here are whole: leave it out")
        _check_local(place)
        return Source(place.source, place.revision, trust_remote_code)
    wanted = known.base_model if base is None else str(base)
    if wanted is None:
        raise ValueError("the adapter does not say which base model it belongs to; give its folder or hub id as base")
    try:
        below = locate(wanted, None, known.base_revision if base is None else None)
    except ValueError as error:
        raise ValueError(f"the adapter's base model is not to be had: {error}; give where it is now as base") from error
    _check_local(below)
    if below.adapter:
        raise ValueError(f"the adapter's base model {wanted} is an adapter itself; export that one first")
    return Source(below.source, below.revision, trust_remote_code, place.source)


def _check_local(place: Place) -> None:
    if place.folder != Path(place.source):
        return  # on a hub, whose weights come when they are asked for
    absent = missing_weights(place.folder) if (place.folder / CONFIG).is_file() else f"{CONFIG} is missing"
    if absent and not place.adapter:
        raise ValueError(f"{place.folder}: {absent}")


def _check_model(source: Source, reducers: Sequence[Reducer]) -> None:
    model = bones(read_config(source.path, source.revision, source.trust_remote_code))
    if reducers:
        attach(model, reducers).remove()


# Which reduction a loaded model gets: the one it was trained with, another, or that one at another budget.

# ...: as trained; None: none; else one, several stages of one, their configuration, or the name of a method.
Choice = types.EllipsisType | None | str | Reducer | Mapping[str, Any] | Sequence[Any]


def choose(trained: Sequence[Reducer] | None, wanted: Choice, keep: Keep | Sequence[Keep] | None) -> list[Reducer]:
    """keep: another budget for it, one for each stage. Without a training, a budget alone means DART at it."""
    if wanted is ...:
        chosen = list(trained or ([DART()] if keep is not None else []))
    elif wanted is None:
        chosen = []
    elif isinstance(wanted, str):
        chosen = _by_name(wanted, trained or [], keep)
    else:
        stages: Sequence[Any] = [wanted] if isinstance(wanted, Reducer | Mapping) else wanted
        chosen = [stage if isinstance(stage, Reducer) else from_config(stage) for stage in stages]
    if wanted is not ... and any(isinstance(stage, FewerPixels) for stage in chosen):
        raise ValueError(
            "fewer_pixels makes the pictures smaller and works at the processor: load with reducer=None, then "
            "dart_train.models.resize.fewer_pixels(processor, keep)"
        )
    return chosen if keep is None else _at(chosen, keep)


def _by_name(name: str, trained: Sequence[Reducer], keep: object) -> list[Reducer]:
    """With the options of the training where the method is the same, at its layer and budget where it is not."""
    if name == "none":
        return []
    bare = from_config({"method": name})
    if trained and all(type(stage) is type(bare) for stage in trained):
        return list(trained)
    if len(trained) == 1:
        return [replace(bare, layer=trained[0].layer, keep=trained[0].keep, per=trained[0].per)]
    if keep is None and name != "keep_all":
        raise ValueError(f"reducer={name!r}: how many tokens it keeps is not known; give keep=, such as 64 or 0.222")
    return [bare]


def _at(stages: Sequence[Reducer], keep: Keep | Sequence[Keep]) -> list[Reducer]:
    budgets = list(keep) if isinstance(keep, Sequence) else [keep]
    if not stages:
        raise ValueError(f"keep={keep!r} was given, but no reduction is attached; give a reducer, such as 'dart'")
    if len(budgets) != len(stages):
        raise ValueError(f"keep={keep!r}: {len(budgets)} budgets for {len(stages)} stages; give one for each stage")
    return [replace(stage, keep=budget) for stage, budget in zip(stages, budgets, strict=True)]


def warn_if_untrained(stages: Sequence[Reducer], trained: Budgets | None) -> None:
    """Serving at a budget that training never saw is allowed, and said."""
    served: tuple[Keep, ...] = tuple(stage.keep for stage in stages) or (1.0,)
    if trained is not None and not trained.include(served):
        warnings.warn(f"served at {told([served])}, but trained at {trained}", UntrainedBudget, stacklevel=3)


@dataclass
class Loaded:
    """`attached` is None where nothing is reduced. `provenance`: what is known of how the model came to be."""

    model: Any
    processor: Any
    attached: Attached | None
    provenance: Provenance


def load(
    path: str | Path,
    reducer: Choice = ...,
    *,
    keep: Keep | Sequence[Keep] | None = None,
    dtype: torch.dtype | str | None = None,
    attn_implementation: str = "auto",
    device: str | torch.device | None = None,
    output: Output = "expand",
    checkpoint: Which = None,
    base: str | Path | None = None,
    merge: bool = True,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """A model ready to answer, its reduction attached as it was trained.

    path: an exported folder, a run, one of its checkpoints, the folder of any model, or a hub id.
    reducer: another reduction: a reducer, stages of them, their configuration, or the name of a method; None: none.
    keep: another budget for it. A budget that the model was not trained at gives a warning, `UntrainedBudget`.
    dtype: None: what training computed in, or as saved. device: None: the GPU where there is one.
    checkpoint: of a run, its step, `newest` or `best`; None: the best where validation judged, else the newest.
    base: where an adapter's base model is now, if not where it was. merge: False leaves the adapter inside PEFT.
    Raises a ValueError with everything that is wrong, before any weight is read.
    """
    found = find(
        path,
        reducer,
        keep=keep,
        attn_implementation=attn_implementation,
        checkpoint=checkpoint,
        base=base,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    warn_if_untrained(found.reducers, found.provenance.budgets)
    model = read_model(found.source, dtype or found.dtype, found.kernel, merge)
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    attached = attach(model, found.reducers, output=output) if found.reducers else None
    return Loaded(model, found.processor, attached, found.provenance)
