"""Which reductions an inference engine can apply in its image encoder."""

from __future__ import annotations

import pytest

from dart_train.reduction import (
    DART,
    Balance,
    FastV,
    FewerPixels,
    KeepAll,
    Learned,
    Pooling,
    Random,
    Reducer,
    UniformGrid,
    WindowFastV,
)
from dart_train.reduction.servable import default_servable, describe_reducer, nearest_servable, why_not_servable
from tests.fixtures.external_reducer import EveryOther

AT_THE_ENCODER = {"layer": 0, "per": "image", "keep": 16}


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [DART(text_pivots=0, **AT_THE_ENCODER)],
        [DART(text_pivots=0, pivot="value_min", rule="paper", merge="nearest", **AT_THE_ENCODER)],
        [Learned(guidance="none", **AT_THE_ENCODER)],
        [UniformGrid(**AT_THE_ENCODER)],
        [Pooling(**AT_THE_ENCODER)],
        [KeepAll(layer=0)],
    ],
)
def test_servable_has_no_reasons(stages: list[Reducer]) -> None:
    assert why_not_servable(stages) == []


@pytest.mark.parametrize(
    ("stages", "reasons"),
    [
        ([DART()], ["layer=2", "per='sample'", "text_pivots=4"]),
        ([DART(layer=2), DART(layer=8)], ["2 stages (layers 2, 8)"]),
        ([DART(text_pivots=0, pivot="random", **AT_THE_ENCODER)], ["pivot='random'"]),
        ([Learned(**AT_THE_ENCODER)], ["guidance='prompt'"]),
        ([Random(**AT_THE_ENCODER)], ["random draws by the prompt"]),
        ([FewerPixels(layer=0)], ["at the processor"]),
        ([FastV(**AT_THE_ENCODER)], ["FastV looks at the prompt"]),
        ([WindowFastV(**AT_THE_ENCODER)], ["WindowFastV looks at the prompt"]),
        ([Balance(**AT_THE_ENCODER)], ["Balance looks at the prompt"]),
        ([EveryOther(**AT_THE_ENCODER)], ["EveryOther looks at the prompt, or is not known not to"]),
    ],
)
def test_each_reason_is_named(stages: list[Reducer], reasons: list[str]) -> None:
    found = why_not_servable(stages)
    assert len(found) == len(reasons)
    assert all(any(reason in each for each in found) for reason in reasons), found
    nearest = nearest_servable(stages)
    assert why_not_servable([nearest]) == [] and nearest.keep == stages[-1].keep


def test_nearest_servable_keeps_what_does_not_look_at_the_prompt() -> None:
    assert nearest_servable([DART(keep=9, layer=0, pivot="value_max")]) == DART(
        keep=9, layer=0, pivot="value_max", text_pivots=0, per="image"
    )
    assert nearest_servable([Learned(keep=9, guidance="none", share=0.5)]) == Learned(
        keep=9, guidance="none", share=0.5, layer=0, per="image"
    )
    assert nearest_servable([FastV(keep=9)]) == default_servable(FastV(keep=9))


def test_description_names_what_is_not_the_default() -> None:
    assert describe_reducer(DART(keep=64)) == "dart(keep=64, layer=2)"
    assert describe_reducer(default_servable(DART(keep=64))) == (
        "dart(keep=64, layer=0, per='image', merge='nearest', text_pivots=0, pivot='key_min')"
    )
