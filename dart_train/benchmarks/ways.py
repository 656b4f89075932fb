"""The ways that a model can be made to look at fewer visual tokens: ours, and those of the field, written afresh."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..hooks import Attached, attach
from ..hooks.reference import hide
from ..models.families.llava import interpolate_position_embeddings
from ..models.structure import find_parts
from ..reduction import DART, FastV, KeepAll, Reducer, View
from .options import EAGER, FULL, MASKED, NOTHING, OURS, PIXELS, USUAL, WAYS
from .set_and_loop import set_and_loop
from .shapes import Shape

LAYER = 2


@dataclass(frozen=True, kw_only=True)
class SetAndLoop(DART):
    """DART with the choice made one sample and one pivot at a time, in Python sets."""

    name: ClassVar[str] = "set_and_loop"

    def select(self, view: View) -> Tensor:
        keep = torch.zeros_like(view.valid)
        assert view.seen.keys is not None and view.scale is not None
        for pool, row in enumerate(view.pools.row_of):
            start, size = int(view.pools.slots[pool, 0]), view.pools.sizes[pool]
            seen = slice(start, int(view.pools.last[pool]) + 1)
            states, keys = view.states[row : row + 1, seen], view.seen.keys[row : row + 1, :, seen]
            keep[pool, set_and_loop(states, keys, view.scale, size, view.budgets[pool])[0]] = True
        return keep


@dataclass
class Way:
    """`ready()` holds while the model runs so; `attached` is the reduction then, if there is one."""

    name: str
    around: Callable[[], Any]
    few: bool = False  # takes the batch of the smaller picture
    attached: Attached | None = None

    @contextmanager
    def ready(self) -> Iterator[Attached | None]:
        with self.around() as found:
            self.attached = found if isinstance(found, Attached) else None
            yield self.attached


def ways_of(model: Any, shape: Shape, kept: Tensor, output: str, names: Sequence[str] = WAYS) -> list[Way]:
    """kept [B, L] bool: what stays where tokens are masked; found ahead, so that this way chooses for nothing."""

    def attaching(reducer: Reducer) -> Callable[[], Any]:
        return lambda: attach(model, reducer, output=output)  # type: ignore[arg-type]

    around: dict[str, Callable[[], Any]] = {
        FULL: ExitStack,
        NOTHING: attaching(KeepAll(layer=LAYER)),
        OURS: attaching(DART(keep=shape.kept, layer=LAYER)),
        USUAL: attaching(SetAndLoop(keep=shape.kept, layer=LAYER, rule="paper")),
        EAGER: lambda: eagerly(model, FastV(keep=shape.kept, layer=LAYER), output),
        MASKED: lambda: masking(model, kept),
        PIXELS: lambda: smaller(model, shape),
    }
    return [Way(name, around[name], few=name == PIXELS) for name in names]


@contextmanager
def eagerly(model: Any, reducer: Reducer, output: str) -> Iterator[Attached]:
    """All attention of the language model in plain products, as asking for attention scores makes it."""
    config = find_parts(model).text_config
    kernel, config._attn_implementation = config._attn_implementation, "eager"
    try:
        with attach(model, reducer, output=output) as attached:  # type: ignore[arg-type]
            yield attached
    finally:
        config._attn_implementation = kernel


@contextmanager
def masking(model: Any, keep: Tensor) -> Iterator[None]:
    """Every token goes through every layer; from layer K on, the mask hides the dropped ones. Made once a forward."""
    made: dict[int, tuple[Any, Tensor]] = {}

    def before_layer(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = kwargs.get("attention_mask")
        if id(given) not in made:
            made.clear()
            made[id(given)] = (given, hide(given, keep))
        return args, {**kwargs, "attention_mask": made[id(given)][1]}

    handles = [
        layer.register_forward_pre_hook(before_layer, with_kwargs=True) for layer in find_parts(model).layers[LAYER:]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def smaller(model: Any, shape: Shape) -> Iterator[None]:
    """The encoder takes the smaller picture: its position embeddings are stretched where they have a fixed size."""
    if shape.key.startswith("qwen"):
        yield
        return
    config, side = find_parts(model).top.config, shape.few[0]
    before = config.vision_config.image_size, getattr(config, "image_grid_pinpoints", None)
    config.vision_config.image_size = config.vision_config.patch_size * side
    if before[1] is not None:
        config.image_grid_pinpoints = [[edge * side // shape.grid[0] for edge in tile] for tile in before[1]]
    try:
        with interpolate_position_embeddings(find_parts(model).top):
            yield
    finally:
        config.vision_config.image_size = before[0]
        if before[1] is not None:
            config.image_grid_pinpoints = before[1]
