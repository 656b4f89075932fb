"""Which reductions an inference engine can apply to the output of its image encoder.

An engine encodes an image, and caches the result and the prefix that contains it, before it knows the question. So a
choice is right there only if it does not look at the prompt: before the language model (layer 0), each image by itself,
in one stage, without text pivots, attention or a draw that the prompt seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from .base import Reducer
from .methods.baselines import FewerPixels, KeepAll, Random
from .methods.dart import DART
from .methods.grid import Pooling, UniformGrid
from .methods.learned import Learned

_GRID = (UniformGrid, Pooling)
_SERVABLE = (DART, Learned, KeepAll, *_GRID)


def why_not_servable(stages: Sequence[Reducer]) -> list[str]:
    """Everything that keeps an engine from applying these stages, one sentence each; empty: it can."""
    if not stages:
        return []
    if len(stages) > 1:
        layers = ", ".join(str(stage.layer) for stage in stages)
        return [f"{len(stages)} stages (layers {layers}): an engine drops tokens once, before the language model"]
    return list(_reasons(stages[0]))


def _reasons(stage: Reducer) -> Iterator[str]:
    if stage.layer != 0:
        yield f"layer={stage.layer}: an engine drops tokens before the language model only, which is layer=0"
    if stage.per != "image" and not isinstance(stage, KeepAll):
        yield f"per={stage.per!r}: images are encoded and cached one by one, so the budget is that of each, per='image'"
    if stage.positions != "original":
        yield f"positions={stage.positions!r}: the plug-in keeps the original positions, positions='original'"
    if isinstance(stage, DART):
        if stage.text_pivots:
            yield f"text_pivots={stage.text_pivots}: text pivots depend on the question; text_pivots=0 does not"
        if stage.pivot.partition("_")[0] not in ("key", "value"):
            yield f"pivot={stage.pivot!r}: it depends on the prompt; key_max, key_min and value_... do not"
    elif isinstance(stage, Learned):
        if stage.guidance != "none":
            yield f"guidance={stage.guidance!r}: the scorer looks at the question; guidance='none' does not"
    elif isinstance(stage, FewerPixels):
        yield "fewer_pixels makes images smaller at the processor: give the engine that processor, and no reduction"
    elif isinstance(stage, Random):
        yield "random draws by the prompt; uniform is a choice that looks at nothing"
    elif type(stage) not in _SERVABLE:
        yield f"{type(stage).__name__} looks at the prompt, or is not known not to"


def nearest_servable(stages: Sequence[Reducer]) -> Reducer:
    """The setting nearest to these stages that an engine can apply, at the budget of the last one.

    A selection that looked at the prompt becomes DART without text pivots, with the tokens of smallest embeddings as
    pivots and dropped tokens merged into kept ones.
    """
    last = stages[-1]
    if type(last) in (KeepAll, *_GRID) or (isinstance(last, Learned) and last.guidance == "none"):
        return replace(last, layer=0, per="image", positions="original")
    if isinstance(last, DART) and len(stages) == 1 and last.layer == 0 and last.pivot.startswith(("key", "value")):
        pivots = max(1, last.image_pivots)
        return replace(last, text_pivots=0, image_pivots=pivots, per="image", positions="original")
    return default_servable(last)


def default_servable(like: Reducer | None = None) -> DART:
    keep = 0.222 if like is None else like.keep
    return DART(keep=keep, layer=0, text_pivots=0, pivot="key_min", per="image", merge="nearest")


def describe_reducer(stage: Reducer) -> str:
    """Its configuration on one line, without what is the default."""
    defaults = type(stage)()
    changed = {
        name: value
        for name, value in vars(stage).items()
        if name in ("keep", "layer") or value != getattr(defaults, name)
    }
    return f"{stage.to_dict()['method']}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"
