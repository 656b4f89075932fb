"""Everything about a model that can be known, and can be wrong, before a weight is read: told in one message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..attach import attach
from ..budget import Keep
from ..processors import load_processor
from ..reducers import Reducer
from .choice import Choice, choose
from .kernels import attention_kernel
from .known import NAME as PROVENANCE
from .known import Provenance, known_of
from .place import CONFIG, Place, Which, locate
from .weights import Source, bones, missing_weights, read_config
from .written import read_reducers

T = TypeVar("T")


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
    told = _Told()
    known = told.of(lambda: known_of(place)) or Provenance(place.source)
    kernel = told.of(lambda: attention_kernel(attn_implementation))
    processor = told.of(lambda: _processor(place, known, trust_remote_code))
    trained, unread = _attempt(lambda: read_reducers(place.folder))
    reducers = None
    if unread is None or reducer is not ...:
        reducers = told.of(lambda: choose(trained, reducer, keep))
    else:
        told.problems.append(f"{unread}; or load it with another reducer, or reducer=None")
    source = told.of(lambda: _source(place, known, base, trust_remote_code))
    if source is not None:
        told.of(lambda: _check_model(source, reducers or []))
    if told.problems or source is None:
        raise ValueError(told.message(path))
    assert kernel is not None and reducers is not None
    return Found(place, source, known, processor, trained, reducers, kernel)


class _Told:
    """What is wrong, collected."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def of(self, act: Callable[[], T]) -> T | None:
        value, problem = _attempt(act)
        if problem is not None:
            self.problems.append(problem)
        return value

    def message(self, path: str | Path) -> str:
        if len(self.problems) == 1:
            return f"{path} cannot be loaded: {self.problems[0]}"
        head = f"{path} cannot be loaded: {len(self.problems)} problems"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


def _attempt(act: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return act(), None
    except (ValueError, NotImplementedError, OSError, ImportError, KeyError, TypeError) as error:
        known = isinstance(error, ValueError | NotImplementedError)
        return None, str(error) if known else f"{type(error).__name__}: {error}"


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
