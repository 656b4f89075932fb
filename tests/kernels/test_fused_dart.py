"""The Triton selection chooses the tokens that the PyTorch one chooses; on a CPU in Triton's interpreter."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train.kernels import fused_dart
from dart_train.kernels.fused_dart import FusedDART
from dart_train.profiling.selection_scene import SelectionScene
from dart_train.reduction import DART, from_config
from tests.reduction.scenes import WIDTH, Scene
from tests.reduction.test_launches import Launches

# Triton looks at the variable when it is imported.
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs with TRITON_INTERPRET=1, started by test_interpreter.py"
)


@dataclass(frozen=True)
class Tied(Scene):
    """Small whole numbers, so that norms and cosines are exact and many of them are equal."""

    def drawn(self, row: int, *shape: int, stream: int = 0) -> Tensor:
        chance = torch.Generator().manual_seed(row * 100 + stream)
        tokens = len(self.rows[row])
        if stream != 2:
            return torch.randint(-1, 2, (tokens, *shape), generator=chance).to(self.dtype)
        # States of norm 4: sixteen of their numbers are 1 or -1, the others 0.
        signs = torch.randint(0, 2, (tokens, *shape), generator=chance) * 2 - 1
        return (signs * (torch.rand(tokens, *shape, generator=chance).argsort(-1) < 16)).to(self.dtype)

    @cached_property
    def scale(self) -> Tensor:
        return torch.full((WIDTH,), 2.0)


def random_rows(chance: random.Random) -> tuple[str, ...]:
    """One to three samples of one or two turns, an image each, between text."""
    rows = []
    for _ in range(chance.randint(1, 3)):
        turns = chance.randint(1, 2)
        rows.append("t" + "".join("v" * chance.randint(1, 40) + "t" * chance.randint(1, 6) + "a" for _ in range(turns)))
    return tuple(rows)


def choice(reducer: DART, scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """keep, and the pivots that count."""
    context = scene.context(reducer)
    keep = reducer.select(context)
    assert context.pivots is not None
    return keep, context.pivots[0].masked_fill(~context.pivots[1], -1), context.pivots[1]


@pytest.mark.parametrize("kind", [Scene, Tied])
@pytest.mark.parametrize("seed", range(20))
def test_fused_selection_is_that_of_pytorch(seed: int, kind: type[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    scene = kind(random_rows(chance), side=chance.choice(["left", "right"]))
    options: dict[str, Any] = {
        "keep": chance.choice([1, 3, 8, 16, 24, 0.1, 0.5, 1.0]),
        "rule": chance.choice(["exact", "paper"]),
        "pivot": chance.choice(["key_max", "key_min"]),
        "per": chance.choice(["sample", "image"]),
        **chance.choice([{}, {"image_pivots": 0}, {"text_pivots": 0}, {"image_pivots": 3, "text_pivots": 2}]),
    }
    expected = choice(DART(**options), scene)
    with monkeypatch.context() as patch:
        patch.setattr("dart_train.reduction.methods.dart.take_least_similar", None)  # no way back to PyTorch
        found = choice(FusedDART(**options), scene)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs), (options, scene.rows)


def test_fused_selection_takes_the_earlier_of_equal_tokens() -> None:
    """All tokens are the same one: image pivots are the first, and each pivot takes the first that are left."""

    class Same(Scene):
        def drawn(self, row: int, *shape: int, stream: int = 0) -> Tensor:
            return torch.ones(len(self.rows[row]), *shape)

    keep, pivots, counts = choice(FusedDART(keep=7), Same(("tt" + "v" * 20 + "tttttt",)))
    assert keep[0].nonzero().flatten().tolist() == list(range(7))
    assert pivots[0].tolist() == [2, 3, 4, 5, 22, 23, 24, 25] and bool(counts.all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_selection_in_half_precision(dtype: torch.dtype) -> None:
    scene = Scene(("t" + "v" * 70 + "tttttt", "tt" + "v" * 33 + "ttttt"), dtype=dtype)
    assert torch.equal(choice(FusedDART(keep=12), scene)[0], choice(DART(keep=12), scene)[0])


def test_fused_selection_of_many_wide_tokens() -> None:
    """More than one block of tokens, and of numbers in a token."""
    scene = SelectionScene.draw(300, 2, 256, torch.device("cpu"), torch.float32)
    fused, plain = (kind(keep=33).select(scene.context(kind(keep=33))) for kind in (FusedDART, DART))
    assert torch.equal(fused, plain) and fused.sum(1).tolist() == [33, 33]


def test_fused_selection_is_at_most_twenty_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of PyTorch's operators on a device that is not a CPU, and of kernels. PyTorch's own selection: some 80."""
    from dart_train.kernels import selection

    kernels = ("_l1_norms", "_pivots", "_similarities", "_take_least_similar")
    launched: list[str] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **options: launched.append(self.name)

    for name in kernels:
        monkeypatch.setattr(selection, name, Recorder(name))
    monkeypatch.setattr(fused_dart, "can_run", lambda device: True)
    here, meta = SelectionScene.draw(576, 1, 256, torch.device("cpu"), torch.float32), torch.device("meta")
    there = {name: getattr(here, name).to(meta) for name in ("states", "keys", "query", "scale", "groups", "real")}
    scene, reducer = replace(here, **there), FusedDART(keep=64)
    with Launches() as operators:
        reducer.select(scene.context(reducer))
    assert launched == list(kernels) and operators.count + len(kernels) <= 20


def test_fused_selection_leaves_the_rest_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, options = Scene(("tt" + "v" * 20 + "tttt",)), {"keep": 6, "pivot": "value_max"}
    assert torch.equal(choice(FusedDART(**options), scene)[0], choice(DART(**options), scene)[0])
    monkeypatch.setattr(fused_dart, "can_run", lambda device: False)
    assert torch.equal(choice(FusedDART(keep=6), scene)[0], choice(DART(keep=6), scene)[0])


def test_fused_dart_is_named_in_a_recipe_by_its_place() -> None:
    config = FusedDART(keep=6).to_dict()
    assert config["method"] == "dart_train.kernels.fused_dart:FusedDART"
    assert from_config(config) == FusedDART(keep=6)
