"""`reducer.json`: how the model was trained to see less, beside its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import RecipeError
from ..config.text import parse
from ..reduction import Reducer, from_config
from ..reduction.budget import Keep
from .locate import ADAPTER, Place

# What is known of a model: the recipe and the base it comes from, and what it was measured to be worth.

NAME = "provenance.json"
FORMAT = 1


@dataclass(frozen=True)
class Provenance:
    """`budgets` None: nothing is known of a training. `recipe`: with every default written out."""

    source: str
    base_model: str | None = None
    base_revision: str | None = None
    step: int | None = None
    recipe: Mapping[str, Any] | None = None
    budgets: Budgets | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # trained with
    data: tuple[Mapping[str, Any], ...] = ()  # a fingerprint of each source
    results: Mapping[str, Any] = field(default_factory=dict)  # what was measured: validation, compare
    exported_with: Mapping[str, str] = field(default_factory=dict)  # versions

    def to_dict(self) -> dict[str, Any]:
        budgets = None if self.budgets is None else self.budgets.to_dict()
        return {"format": FORMAT, **asdict(self), "budgets": budgets}

    @property
    def trained_dtype(self) -> str | None:
        """What training computed in; None where that is not known."""
        if self.recipe is None:
            return None
        asked = self.recipe.get("model", {}).get("dtype", "auto")
        names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
        return names.get(self.recipe.get("train", {}).get("precision")) if asked == "auto" else str(asked)


def write_provenance(folder: Path, provenance: Provenance) -> None:
    text = json.dumps(provenance.to_dict(), indent=2, ensure_ascii=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def known_of(place: Place) -> Provenance:
    """Of an export what is written in it; of a checkpoint what its recipe says; of a plain model nothing."""
    written = place.folder / NAME
    if written.is_file():
        return _read(written, place.source)
    recipe = _recipe_of(place.folder)
    base, revision = _base_of(place, recipe)
    budgets = None if recipe is None else Budgets.of(recipe.get("reduction"))
    versions = _json(place.folder / "versions.json")
    return Provenance(place.source, base, revision, place.step, recipe, budgets, versions)


def _read(file: Path, source: str) -> Provenance:
    plain = _json(file)
    if plain.pop("format", None) != FORMAT:
        raise ValueError(f"{file}: not of format {FORMAT}, which is all that this version reads; update dart_train")
    budgets = plain.pop("budgets", None)
    known = {name: plain[name] for name in Provenance.__dataclass_fields__ if name in plain}
    read = None if budgets is None else Budgets.read(budgets)
    return Provenance(**{**known, "source": source, "budgets": read, "data": tuple(known.get("data", ()))})


def _recipe_of(folder: Path) -> Mapping[str, Any] | None:
    """Read as it stands: a recipe of another version tells as much as it can."""
    try:
        recipe = parse((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, RecipeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / 'recipe.yaml'} cannot be read: {error}") from error
    return recipe if isinstance(recipe, dict) else None


def _base_of(place: Place, recipe: Mapping[str, Any] | None) -> tuple[str | None, str | None]:
    model = (recipe or {}).get("model") or {}
    if place.adapter:
        adapter = _json(place.folder / ADAPTER)
        named = adapter.get("base_model_name_or_path") or model.get("path")
        return named, adapter.get("revision") or model.get("revision")
    return model.get("path"), model.get("revision")


def _json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return read if isinstance(read, dict) else {}


# The budgets a model was trained at, so that serving it at another one is said and not found out.

FULL: tuple[Keep, ...] = (1.0,)


class UntrainedBudget(UserWarning):
    """The model is served at a budget that it was not trained at."""


@dataclass(frozen=True)
class Budgets:
    """choices: the budgets of all stages, of which each step had one; or, with one stage, the range of ratios that
    steps drew from. No choice and no range: trained with full tokens."""

    choices: tuple[tuple[Keep, ...], ...] = ()
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, reduction: Any) -> Budgets:
        """From the `reduction` section of a recipe, as `Recipe.to_dict` writes it."""
        if not isinstance(reduction, Mapping):
            return cls()
        stages = reduction.get("stages", [reduction])
        schedule = reduction.get("schedule") or {}
        if schedule.get("kind") == "elastic":
            return cls(tuple((keep,) for keep in schedule["choices"]))
        if schedule.get("kind") == "progressive":
            lowest, highest = (1.0 - schedule[f"{end}_{side}"] for end, side in _ends(schedule))
            return cls(low=lowest, high=highest)
        return cls((tuple(stage.get("keep", 1.0) for stage in stages),))

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Budgets:
        return cls(tuple(tuple(choice) for choice in plain["choices"]), plain["low"], plain["high"])

    def to_dict(self) -> dict[str, Any]:
        return {"choices": [list(choice) for choice in self.choices], "low": self.low, "high": self.high}

    def include(self, keep: Sequence[Keep]) -> bool:
        """Whether `keep`, a budget for each stage, is one of those."""
        served = FULL if all(_same(k, 1.0) for k in keep) else tuple(keep)
        if self.low is not None and self.high is not None:
            ratio = served[0] if len(served) == 1 and isinstance(served[0], float) else math.nan
            return self.low - 1e-9 <= ratio <= self.high + 1e-9
        trained = [FULL if all(_same(k, 1.0) for k in choice) else choice for choice in self.choices or (FULL,)]
        return any(len(t) == len(served) and all(map(_same, t, served)) for t in trained)

    def __str__(self) -> str:
        if self.low is not None:
            return f"{self.low:.3g} to {self.high:.3g} of the visual tokens"
        return told(self.choices or (FULL,))


def told(choices: Sequence[Sequence[Keep]]) -> str:
    """Budgets as a person says them; those of several stages follow each other."""
    full = [all(_same(each, 1.0) for each in choice) for choice in choices]
    words = [_words(choice) for choice, whole in zip(choices, full, strict=True) if not whole]
    return ", ".join([*(["full tokens"] * any(full)), *words])


def _words(choice: Sequence[Keep]) -> str:
    unit = {float: "of the tokens", int: "tokens"}
    return " then ".join(f"{each:.3g} {unit[type(each)]}" for each in choice)


def _same(one: Keep, other: Keep) -> bool:
    """1 is one token, 1.0 all of them."""
    return isinstance(one, float) == isinstance(other, float) and math.isclose(one, other)


def _ends(schedule: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which fields hold the greatest and the least dropped share."""
    most = max(("start", "end"), key=lambda end: schedule[f"{end}_high"])
    least = min(("start", "end"), key=lambda end: schedule[f"{end}_low"])
    return [(most, "high"), (least, "low")]


NAME_WRITTEN = "reducer.json"
FORMAT_WRITTEN = 1  # raise it when the file changes in a way that older readers would misread


def write_reducers(folder: Path, reducers: Sequence[Reducer]) -> None:
    """No stage: the model was trained without a reduction."""
    content = {"format": FORMAT_WRITTEN, "stages": [reducer.to_dict() for reducer in reducers]}
    (folder / NAME_WRITTEN).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_reducers(folder: Path) -> list[Reducer] | None:
    """What the checkpoint was trained with; None where nothing is written."""
    file = folder / NAME_WRITTEN
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT_WRITTEN:
        given = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{file}: format {given!r}, expected {FORMAT_WRITTEN}; update dart_train to read it")
    try:
        return [from_config(stage) for stage in content["stages"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: {error}; is it of a newer version, or its method of a package that is not here?"
        ) from error
