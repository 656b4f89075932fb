"""`attach(model, reducer)`: the reduction put on a model, and taken off again without a trace."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..common.environment import version_note
from ..models.structure import ModelParts, find_parts
from ..reduction import Reducer
from ..reduction.batch_layout import to_cpu_in_one_copy
from ..reduction.budget import Keep
from .deepstack import patch_deepstack
from .engine import Engine, Output
from .forward_state import ForwardState
from .teacher import TeacherPass

# Attributes set on objects for a while, and put back exactly.

_ABSENT = object()


class Patches:
    """Remembers what each object's own `__dict__` held, so that undoing leaves no trace."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        self._before.append((owner, name, vars(owner).get(name, _ABSENT)))
        vars(owner)[name] = value  # not setattr: a module would register it, a property would intercept it

    def undo(self) -> None:
        while self._before:
            owner, name, value = self._before.pop()
            if value is _ABSENT:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = value


# What a forward kept, for whoever wants to look.


@dataclass(frozen=True)
class Kept:
    """mask [B, L] bool: kept tokens after the last stage, text included; visual [B, L] bool: visual ones of the
    input; stages: the mask after each stage; visual_before, visual_after: numbers per sample, on the host;
    pivots [B, L] bool: image and text tokens that the last stage's choice started from, None where it has none."""

    mask: Tensor
    visual: Tensor
    stages: tuple[Tensor, ...]
    visual_before: tuple[int, ...]
    visual_after: tuple[int, ...]
    length: int
    pivots: Tensor | None = None

    @classmethod
    def of(cls, flight: ForwardState) -> Kept:
        assert flight.batch is not None and flight.pools is not None
        masks = tuple(kept.mask() for kept in flight.kept)
        after = [0] * flight.batch.shape[0]
        for row, number in zip(flight.pools.row_of, flight.kept_visual[-1], strict=True):
            after[row] += number
        before = flight.batch.visual.sum(1).tolist()
        visual = flight.batch.visual.to(masks[-1].device)
        pivots = _pivots(flight, masks[-1])
        return cls(masks[-1], visual, masks, tuple(before), tuple(after), flight.kept[-1].length, pivots)

    @property
    def kept_visual(self) -> Tensor:
        """[B, L] bool."""
        return self.mask & self.visual


def _pivots(flight: ForwardState, like: Tensor) -> Tensor | None:
    told = flight.pivots[-1]
    if told is None or flight.pools is None:
        return None
    places, count = told
    mask = torch.zeros_like(like)
    mask[flight.pools.rows[:, None].expand_as(places)[count], places[count]] = True
    return mask


MARK = "_dart_train_attached"


class Attached:
    """A model with its reduction. Also a context manager, which removes it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._patches = Patches()
        self._handles: list[Any] = []

    @property
    def reducers(self) -> tuple[Reducer, ...]:
        return self._engine.reducers

    @property
    def last(self) -> Kept | None:
        """What the last forward with pictures kept; None if nothing was reduced in it."""
        return None if self._engine.last is None else Kept.of(self._engine.last)

    @property
    def seed(self) -> int:
        """Added to the seed of random choices; a trainer sets it to its step."""
        return self._engine.seed

    @seed.setter
    def seed(self, value: int) -> None:
        self._engine.seed = value

    def time_choices(self, on: bool = True) -> None:
        """From now on note what the choice of tokens takes: `choosing_seconds` tells."""
        self._engine.watch.on = on

    def choosing_seconds(self) -> float:
        """Spent on it since this was last asked. On a GPU this waits for the device."""
        return self._engine.watch.read()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Full tokens: the teacher, the baseline."""
        before, self._engine.active = self._engine.active, False
        try:
            yield
        finally:
            self._engine.active = before

    def set_keep(self, *keep: Keep) -> None:
        """Another budget for each stage, from the next forward on."""
        self._engine.reducers = self._at(keep)

    def _at(self, keep: Sequence[Keep]) -> tuple[Reducer, ...]:
        if len(keep) != len(self.reducers):
            raise ValueError(f"{len(keep)} budgets were given for {len(self.reducers)} stages")
        return tuple(replace(r, keep=k) for r, k in zip(self.reducers, keep, strict=True))

    @contextmanager
    def beside(self, *keep: Keep) -> Iterator[None]:
        """Forwards within also say what they would at this other budget of each stage, without gradient: logits come
        twice along the first axis, the other budget's behind. Vision tower and layers < K run once for both."""
        before, self._engine.companion = self._engine.companion, TeacherPass(self._at(keep))
        try:
            yield
        finally:
            self._engine.companion = before

    @contextmanager
    def without_loss(self) -> Iterator[None]:
        """Labels only say where logits are wanted: the model's own loss is not computed."""
        before, self._engine.loss.wanted = self._engine.loss.wanted, False
        try:
            yield
        finally:
            self._engine.loss.wanted = before

    def expect(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **others: Any
    ) -> None:
        """Tell the next forward's batch while it is still on the CPU: it then needs no synchronisation. others: the
        rest of it, of which the grids of the images are read where a method needs them."""
        batch = {"ids": input_ids, "mask": attention_mask, "labels": labels}
        grids = {name: x for name, x in others.items() if name in self._engine.parts.family.reads}
        self._engine.expected = to_cpu_in_one_copy({**batch, **grids})

    def refresh(self) -> None:
        """Read the final norm's weight anew. Needed under ZeRO-3 only, where it is collective."""
        self._engine.scale.refresh()

    def remove(self) -> None:
        """Leave the model as it was found. Twice does no harm."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._patches.undo()
        self._engine.flight = None

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _install(self) -> Attached:
        engine, parts = self._engine, self._engine.parts
        self._patches.set(parts.top, MARK, self)
        self._patches.set(parts.top, "_loss_function", engine.loss)
        self._patches.set(parts.top, "generate", _knowing_the_prompt(engine, parts.top.generate))
        for name, value in patch_deepstack(engine).items():
            self._patches.set(parts.text, name, value)
        self._handles = engine.hooks()
        return self


def attach(model: Any, reducer: Reducer | Sequence[Reducer], *, output: Output = "expand") -> Attached:
    """Put a reduction, or several stages of it, on a Hugging Face vision-language model.

    output: `expand` keeps the length of the model's output, for trainers and scripts that need not know;
    `compact` gives short states, and with labels the logits of supervised positions only: the cheapest.
    Both give the same loss.
    """
    parts = find_parts(model)
    _warn_of_untested_transformers()
    if output not in ("expand", "compact"):
        raise ValueError(f"output={output!r}: expected 'expand' or 'compact'")
    if MARK in vars(parts.top):
        raise ValueError("a reduction is attached to this model already: remove() it first, or use set_keep()")
    stages = _stages(reducer, parts)
    return Attached(Engine(parts, stages, output))._install()


@functools.cache  # once a process
def _warn_of_untested_transformers() -> None:
    if note := version_note():
        warnings.warn(note, stacklevel=3)


def _stages(reducer: Reducer | Sequence[Reducer], parts: ModelParts) -> list[Reducer]:
    stages = [reducer] if isinstance(reducer, Reducer) else list(reducer)
    if not stages or not all(isinstance(stage, Reducer) for stage in stages):
        raise ValueError(f"expected a reducer or a list of reducers, such as DART(keep=64); given {reducer!r}")
    problems = [*_layer_problems(stages, len(parts.layers))]
    if len({stage.per for stage in stages}) > 1:
        problems.append("all stages must budget per the same thing: give each the same `per`")
    problems += [
        f"{type(stage).__name__} at layer 0: there is no attention before the first layer; use layer >= 1"
        for stage in stages
        if stage.layer == 0 and "attention" in stage.required_inputs()
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return stages


def _layer_problems(stages: Sequence[Reducer], depth: int) -> list[str]:
    layers = [stage.layer for stage in stages]
    problems = [f"layer={k}: expected 0 to {depth - 1}, the model has {depth} layers" for k in layers if k >= depth]
    if layers != sorted(set(layers)):
        problems.append(f"stages at layers {layers}: expected each to come after the one before")
    return problems


def _knowing_the_prompt(engine: Engine, generate: Any) -> Any:
    """In generation the prompt alone chooses: not the answer so far, not the drafts of assisted decoding."""

    @functools.wraps(generate)
    def generate_knowing(*args: Any, **kwargs: Any) -> Any:
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        before = engine.prompt, engine.generating
        if isinstance(ids, Tensor) and ids.ndim == 2:
            engine.prompt, engine.generating = (ids.shape[0], ids.shape[1]), kwargs
        try:
            return generate(*args, **kwargs)
        finally:
            engine.prompt, engine.generating = before

    return generate_knowing
