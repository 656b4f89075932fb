"""From names and options to reducers, and back."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from dart_train import DART, REDUCERS, Random, Reducer, ScoreReducer, View, from_config
from dart_train.reduction import SelectionContext, reducer_class
from tests.reduction.scenes import Scene


@dataclass(frozen=True, kw_only=True)
class Last(ScoreReducer):
    """A method of another package: the last tokens of each image, in steps."""

    requires: ClassVar[frozenset[str]] = frozenset()
    step: int = 1

    def score(self, context: View) -> Tensor:
        places = torch.arange(context.valid.shape[1]).expand_as(context.valid)
        return places + 100.0 * (places % self.step == 0)


@dataclass(frozen=True, kw_only=True)
class Calmer(DART):
    """Inherits the name of one of ours, and must not be taken for it."""

    image_pivots: int = 2


OUTSIDE = f"{__name__}:Last"


def test_class_of_another_package_is_found_by_its_module() -> None:
    reducer = from_config({"method": OUTSIDE, "keep": 3, "step": 2})
    assert reducer == Last(keep=3, step=2)
    assert Scene(("tvvvvvvvt", "vvt")).choice(reducer) == [{3, 5, 7}, {0, 1}]


@pytest.mark.parametrize("reducer", [Last(keep=4), Calmer(keep=4), DART(keep=0.5, pivot="value_min")])
def test_reducer_round_trips_through_its_configuration(reducer: Reducer) -> None:
    again = from_config(json.loads(json.dumps(reducer.to_dict())))
    assert again == reducer and type(again) is type(reducer)


@pytest.mark.parametrize("method", REDUCERS)
def test_every_method_round_trips_through_its_configuration(method: str) -> None:
    reducer = REDUCERS[method](keep=7, layer=3, per="image", merge="nearest")
    assert reducer.to_dict()["method"] == method
    assert from_config(json.loads(json.dumps(reducer.to_dict()))) == reducer


@pytest.mark.parametrize("method", REDUCERS)
def test_methods_have_unique_names_and_docstrings(method: str) -> None:
    cls = REDUCERS[method]
    assert cls.name == method
    assert cls.__doc__ and not cls.__doc__.startswith(cls.__name__ + "(")
    assert cls.requires <= {"keys", "values", "attention", "grid", "scorer"}
    assert {"keep", "layer", "per", "merge"} <= {field.name for field in fields(cls)}


def test_all_problems_are_reported_together_with_suggestions() -> None:
    options = {"keep": 0, "layers": 2, "image_pivot": 4, "zzz": 1}
    with pytest.raises(ValueError) as error:
        from_config({"method": "dart", **options})
    message = str(error.value)
    assert all(f"unknown option '{name}'" in message for name in ("layers", "image_pivot", "zzz"))
    assert "did you mean layer?" in message and "did you mean image_pivots?" in message
    assert "keep=0: expected" in message
    assert "keep, layer, per, merge, positions, image_pivots" in message  # the known options


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("dartt", "method='dartt': expected one of dart, .*did you mean dart?"),
        ("uniform_grid", "did you mean uniform?"),
        (None, "method=None: expected the name of a method, one of dart, "),
        (3, "method=3: expected the name"),
        ("no_such_package.x:Y", "cannot be imported .*no_such_package.*is the package installed?"),
        (f"{__name__}:Nobody", "cannot be imported .*Nobody"),
        (":Last", "cannot be imported"),
        ("json:loads", "expected a subclass of dart_train.Reducer, found"),
        ("json:JSONDecoder", "expected a subclass of dart_train.Reducer, found"),
    ],
)
def test_something_that_is_not_a_method_is_refused_by_name(method: object, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", re.escape("?"))):
        from_config({"method": method, "keep": 4})


def test_configuration_is_left_as_it_was() -> None:
    config = {"method": "random", "keep": 4}
    assert from_config(config) == Random(keep=4)
    assert config == {"method": "random", "keep": 4}
    assert reducer_class("random") is Random


def test_method_without_select_reports_what_is_missing() -> None:
    for cls, missing in ((Reducer, r"define select\(context\)"), (ScoreReducer, r"define score\(context\)")):
        with pytest.raises(NotImplementedError, match=missing):
            cls(keep=1).select(Scene(("vt",)).context(Random(keep=1)))


@dataclass(frozen=True, kw_only=True)
class WrittenBefore(Random):
    """Uses the former names only, and the parent's through `super()`."""

    needs: ClassVar[frozenset[str]] = frozenset({"values"})

    def required(self) -> frozenset[str]:
        return super().required() | {"keys"}

    def content(self, context: View, keep: Tensor) -> Tensor | None:
        return super().content(context, keep)


@dataclass(frozen=True, kw_only=True)
class ChildOfBefore(WrittenBefore):
    """The new name, on top of a class that has the former one."""

    def merge_targets(self, context: SelectionContext, keep: Tensor) -> Tensor | None:
        targets = super().merge_targets(context, keep)
        return None if targets is None else targets + 0


class FormerMixin:
    def required(self) -> frozenset[str]:
        return frozenset({"attention"})


class MixedIn(FormerMixin, Random):
    pass


@pytest.mark.parametrize("cls", [WrittenBefore, ChildOfBefore])
def test_former_method_names_are_used_by_the_engine(cls: type[Random]) -> None:
    reducer, plain = cls(keep=3, merge="nearest"), Random(keep=3, merge="nearest")
    assert cls.requires == cls.needs == {"values"}
    assert reducer.required_inputs() == reducer.required() == {"keys", "values"}
    context = Scene(("tt" + "v" * 9 + "ttt",)).context(reducer)
    keep = reducer.select(context)
    wanted = plain.merge_targets(context, keep)
    assert wanted is not None
    for method in (reducer.merge_targets, reducer.content):
        targets = method(context, keep)
        assert targets is not None and torch.equal(targets, wanted)
    assert cls.merge_targets is not Reducer.merge_targets


def test_former_method_name_from_a_mixin_is_used() -> None:
    assert MixedIn(keep=3).required_inputs() == {"attention"}


def test_former_names_of_the_registered_methods_stay() -> None:
    reducer = REDUCERS["pooling"](keep=4)
    assert reducer.required() == reducer.needs == {"grid"} and View is SelectionContext
    assert type(reducer).content is type(reducer).merge_targets is not Reducer.content
