"""A small operation on a GPU costs its launch: the number of launches does not grow with the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dart_train.profiling.selection_scene import SelectionScene
from dart_train.reduction import REDUCERS

MOST = 90  # DART's 82 and some room: added launches fail the test
SCORER = 30  # its layers, some of which the meta device splits into several operations


class Launches(TorchDispatchMode):
    """Counts what computes; a view of a tensor launches nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func._schema.returns
        self.count += not any(r.alias_info is not None and not r.alias_info.is_write for r in returned)
        return func(*args, **(kwargs or {}))


def launches(method: str, tokens: int, batch: int) -> int:
    """Of one selection on a device that is not a CPU: the meta device takes the same path as a GPU."""
    meta, here = torch.device("meta"), SelectionScene.draw(tokens, batch, 256, torch.device("cpu"), torch.float32)
    there = {name: getattr(here, name).to(meta) for name in ("states", "keys", "query", "scale", "groups", "real")}
    reducer, scene = REDUCERS[method](keep=tokens // 9), replace(here, **there)
    with Launches() as launched:
        context = scene.context(reducer)
        reducer.merge_targets(context, reducer.select(context))
    return launched.count


@pytest.mark.parametrize("method", REDUCERS)
def test_launches_do_not_grow_with_the_image(method: str) -> None:
    few = launches(method, 600, 1)  # 600 and 2,700 tokens are one grid each; a tile more is a launch more
    assert launches(method, 2700, 1) <= few <= MOST + SCORER * (method == "learned")


@pytest.mark.parametrize(
    "method", [name for name, method in REDUCERS.items() if method().required_inputs() <= {"keys"}]
)
def test_launches_do_not_grow_with_the_batch(method: str) -> None:
    """Methods that use attention compute its row sample by sample."""
    assert launches(method, 600, 8) <= launches(method, 600, 1)


def test_launch_counter_ignores_views() -> None:
    def ran(work: Callable[[], object]) -> int:
        with Launches() as launched:
            work()
        return launched.count

    x = torch.ones(4)
    assert [ran(lambda: x + 1), ran(lambda: x.view(2, 2)), ran(lambda: x.mul_(2).abs())] == [1, 0, 2]
