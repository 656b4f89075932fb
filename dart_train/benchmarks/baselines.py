"""The variants that are compared: full tokens, ours, and what released code and papers do, implemented here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, rms_norm

from ..hooks import Attached, attach
from ..hooks.reference import hide
from ..models.families.llava import interpolate_position_embeddings
from ..models.structure import find_parts
from ..reduction import DART, FastV, KeepAll, Reducer, SelectionContext, TowerDART
from .model_shapes import ModelShape
from .workloads import LAYER, BenchModel

FULL, KEEP_ALL, OURS = "full tokens", "keep-all attached", "DART"
SET_LOOP, EAGER, MASKED = "set-and-loop choice", "scores by eager attention", "masked, not dropped"
FEWER_PIXELS = "fewer pixels"
TOWER, TOWER_ON = "half of the tower, then DART", "tower stage on, keep-all"
VARIANTS = (FULL, KEEP_ALL, OURS, TOWER, TOWER_ON, SET_LOOP, EAGER, MASKED, FEWER_PIXELS)
TOWER_KEEP = 0.5
IMAGE_PIVOTS = 4
TEXT_PIVOTS = 4


@dataclass
class Variant:
    """`active()` holds while the model runs so; `attached` is the reduction then, if there is one."""

    name: str
    context: Callable[[], AbstractContextManager[object]]
    small: bool = False  # runs on the batch of the smaller image
    attached: Attached | None = None

    @contextmanager
    def active(self) -> Iterator[Attached | None]:
        with self.context() as entered:
            self.attached = entered if isinstance(entered, Attached) else None
            yield self.attached


def make_variants(bench: BenchModel, output: str, names: Sequence[str] = VARIANTS) -> list[Variant]:
    """output: of the reduction, as in `attach`."""
    model, shape, kept = bench.model, bench.shape, bench.shape.kept

    def attaching(*stages: Reducer | TowerDART) -> Callable[[], AbstractContextManager[object]]:
        return lambda: attach(model, stages, output=output)  # type: ignore[arg-type]

    contexts: dict[str, Callable[[], AbstractContextManager[object]]] = {
        FULL: ExitStack,
        KEEP_ALL: attaching(KeepAll(layer=LAYER)),
        OURS: attaching(DART(keep=kept, layer=LAYER)),
        TOWER: attaching(TowerDART(layer=0, keep=TOWER_KEEP), DART(keep=kept, layer=LAYER)),
        TOWER_ON: attaching(TowerDART(tolerance=0.0), KeepAll(layer=LAYER)),  # random pixels: no unit is equal
        SET_LOOP: attaching(SetAndLoop(keep=kept, layer=LAYER, rule="paper")),
        EAGER: lambda: eager_attention_scores(model, FastV(keep=kept, layer=LAYER), output),
        MASKED: lambda: masked_tokens(model, bench.kept),
        FEWER_PIXELS: lambda: smaller_image(model, shape),
    }
    return [Variant(name, contexts[name], small=name == FEWER_PIXELS) for name in names]


@contextmanager
def eager_attention_scores(model: Any, reducer: Reducer, output: str) -> Iterator[Attached]:
    """All attention of the language model in plain matrix products, as `output_attentions=True` makes it."""
    config = find_parts(model).text_config
    kernel, config._attn_implementation = config._attn_implementation, "eager"
    try:
        with attach(model, reducer, output=output) as attached:  # type: ignore[arg-type]
            yield attached
    finally:
        config._attn_implementation = kernel


@contextmanager
def masked_tokens(model: Any, keep: Tensor) -> Iterator[None]:
    """Every token runs through every layer; from layer K on a mask hides the dropped ones. keep [B, L] bool is selected
    ahead and the mask is made once a forward, so that this variant pays for neither."""
    last: dict[int, tuple[Any, Tensor]] = {}  # id of the layers' mask -> (that mask, the one that hides)

    def replace_mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = kwargs.get("attention_mask")
        if id(given) not in last:
            last.clear()
            last[id(given)] = (given, hide(given, keep))
        return args, {**kwargs, "attention_mask": last[id(given)][1]}

    layers = find_parts(model).layers[LAYER:]
    handles = [each.register_forward_pre_hook(replace_mask, with_kwargs=True) for each in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def smaller_image(model: Any, shape: ModelShape) -> Iterator[None]:
    """The vision tower takes the smaller image; position embeddings of a fixed size are interpolated."""
    if shape.key.startswith("qwen"):
        yield
        return
    config, side = find_parts(model).top.config, shape.small_grid[0]
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


@dataclass(frozen=True, kw_only=True)
class SetAndLoop(DART):
    """DART selected as `set_and_loop` does."""

    name: ClassVar[str] = "set_and_loop"

    def select(self, context: SelectionContext) -> Tensor:
        keep = torch.zeros_like(context.valid)
        assert context.observed.keys is not None and context.scale is not None
        for group, row in enumerate(context.groups.row_of):
            start, size = int(context.groups.slots[group, 0]), context.groups.sizes[group]
            tokens = slice(start, int(context.groups.last[group]) + 1)
            states, keys = context.states[row : row + 1, tokens], context.observed.keys[row : row + 1, :, tokens]
            keep[group, set_and_loop(states, keys, context.scale, size, context.budgets[group])[0]] = True
        return keep


@torch.no_grad()
def set_and_loop(states: Tensor, keys: Tensor, scale: Tensor, tokens: int, budget: int) -> list[list[int]]:
    """DART in the pattern of released code: one sample and one pivot at a time, candidates in Python sets, the complete
    sequence through the final norm, every chosen token read back from the device.

    states [B, L, D], keys [B, H, L, d], `tokens` visual tokens first, then text -> kept visual positions of each row.
    """
    return [_set_and_loop_row(*row, scale, tokens, budget) for row in zip(states, keys, strict=True)]


def _set_and_loop_row(states: Tensor, keys: Tensor, scale: Tensor, tokens: int, budget: int) -> list[int]:
    states = rms_norm(states, states.shape[-1:], scale.to(states.dtype))
    norms = keys.transpose(0, 1).reshape(keys.shape[1], -1).norm(p=1, dim=-1)
    image = norms[:tokens].topk(IMAGE_PIVOTS).indices.tolist()
    text = (norms[tokens:].topk(TEXT_PIVOTS).indices + tokens).tolist()
    quota = budget // (IMAGE_PIVOTS + TEXT_PIVOTS)
    kept = set(image)
    remaining = set(range(tokens)) - kept
    for pivot in [*image, *text]:
        candidates = list(remaining)
        similarity = cosine_similarity(states[pivot][None], states[candidates], dim=-1)
        chosen = [candidates[int(i)] for i in similarity.topk(quota, largest=False).indices]
        kept.update(chosen)
        remaining.difference_update(chosen)
    return sorted(kept)


@torch.no_grad()
def plain_loops(states: Tensor, keys: Tensor, scale: Tensor, tokens: int, budget: int) -> list[list[int]]:
    """The same token by token, as the algorithm reads on paper."""
    return [_plain_loops_row(*row, scale, tokens, budget) for row in zip(states, keys, strict=True)]


def _plain_loops_row(states: Tensor, keys: Tensor, scale: Tensor, tokens: int, budget: int) -> list[int]:
    states = rms_norm(states, states.shape[-1:], scale.to(states.dtype))
    norms = [float(keys[:, position].abs().sum()) for position in range(keys.shape[1])]
    image = sorted(range(tokens), key=lambda position: -norms[position])[:IMAGE_PIVOTS]
    text = sorted(range(tokens, len(norms)), key=lambda position: -norms[position])[:TEXT_PIVOTS]
    kept = set(image)
    for pivot in [*image, *text]:
        remaining = [position for position in range(tokens) if position not in kept]
        similarity = {at: float(cosine_similarity(states[pivot], states[at], dim=0)) for at in remaining}
        kept.update(sorted(remaining, key=similarity.__getitem__)[: budget // (IMAGE_PIVOTS + TEXT_PIVOTS)])
    return sorted(kept)
