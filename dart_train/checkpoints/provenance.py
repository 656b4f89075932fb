"""What is known of how a model was trained: provenance.json, the budgets it was trained at, and reducer.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import RecipeError
from ..config.yaml import parse
from ..reduction import Reducer, from_config
from ..reduction.budget import Keep
from .locate import ADAPTER, ModelLocation

PROVENANCE_FILE, REDUCER_FILE = "provenance.json", "reducer.json"
# Raise a number when its file changes in a way that older readers would misread.
PROVENANCE_FORMAT, REDUCER_FORMAT = 1, 1
FULL: tuple[Keep, ...] = (1.0,)


@dataclass(frozen=True)
class Provenance:
    """What a model was trained from, with what, and how it was measured. `budgets` None: nothing is known of a
    training. `recipe` has every default written out."""

    source: str
    base_model: str | None = None
    base_revision: str | None = None
    step: int | None = None
    recipe: Mapping[str, Any] | None = None
    budgets: TrainedBudgets | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # of the training
    data: tuple[Mapping[str, Any], ...] = ()  # a fingerprint of each source
    results: Mapping[str, Any] = field(default_factory=dict)  # of validation and comparison
    exported_with: Mapping[str, str] = field(default_factory=dict)  # versions

    def to_dict(self) -> dict[str, Any]:
        budgets = None if self.budgets is None else self.budgets.to_dict()
        return {"format": PROVENANCE_FORMAT, **asdict(self), "budgets": budgets}

    @property
    def trained_dtype(self) -> str | None:
        """The dtype that training computed in; None: not known."""
        if self.recipe is None:
            return None
        dtype = self.recipe.get("model", {}).get("dtype", "auto")
        names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
        return names.get(self.recipe.get("train", {}).get("precision")) if dtype == "auto" else str(dtype)


def write_provenance(folder: Path, provenance: Provenance) -> None:
    text = json.dumps(provenance.to_dict(), indent=2, ensure_ascii=False)
    (folder / PROVENANCE_FILE).write_text(text + "\n", encoding="utf-8")


def read_provenance(location: ModelLocation) -> Provenance:
    """From provenance.json in an export; from the recipe in a checkpoint; a plain model has only its source."""
    folder = location.folder
    if (folder / PROVENANCE_FILE).is_file():
        return _read_exported(folder / PROVENANCE_FILE, location.source)
    recipe = _read_recipe(folder)
    base, revision = _base_of(location, recipe)
    budgets = None if recipe is None else TrainedBudgets.of(recipe.get("reduction"))
    versions = _read_json(folder / "versions.json")
    return Provenance(location.source, base, revision, location.step, recipe, budgets, versions)


def _read_exported(file: Path, source: str) -> Provenance:
    content = _read_json(file)
    given = content.pop("format", None)
    if given != PROVENANCE_FORMAT:
        raise ValueError(f"{file}: format {given!r}, expected {PROVENANCE_FORMAT}; update dart_train to read it")
    budgets = content.pop("budgets", None)
    known = {name: content[name] for name in Provenance.__dataclass_fields__ if name in content}
    read = None if budgets is None else TrainedBudgets.read(budgets)
    return Provenance(**{**known, "source": source, "budgets": read, "data": tuple(known.get("data", ()))})


def _read_recipe(folder: Path) -> Mapping[str, Any] | None:
    """Not checked: what a recipe of another version has in common with this one is used."""
    try:
        recipe = parse((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, RecipeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / 'recipe.yaml'} cannot be read: {error}") from error
    return recipe if isinstance(recipe, dict) else None


def _base_of(location: ModelLocation, recipe: Mapping[str, Any] | None) -> tuple[str | None, str | None]:
    model = (recipe or {}).get("model") or {}
    if location.is_adapter:
        adapter = _read_json(location.folder / ADAPTER)
        base = adapter.get("base_model_name_or_path") or model.get("path")
        return base, adapter.get("revision") or model.get("revision")
    return model.get("path"), model.get("revision")


def _read_json(file: Path) -> dict[str, Any]:
    """Empty where there is no file, or no object in it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


class UntrainedBudget(UserWarning):
    """The model runs at a budget that it was not trained at."""


@dataclass(frozen=True)
class TrainedBudgets:
    """choices: each step had one of them, a budget for each stage. low, high: with one stage, the range of ratios
    that steps drew from. Neither: trained with full tokens."""

    choices: tuple[tuple[Keep, ...], ...] = ()
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, reduction: Any) -> TrainedBudgets:
        """From the `reduction` section of a recipe, as `Recipe.to_dict` writes it."""
        if not isinstance(reduction, Mapping):
            return cls()
        stages = reduction.get("stages", [reduction])
        schedule = reduction.get("schedule") or {}
        if schedule.get("kind") == "elastic":
            return cls(tuple((keep,) for keep in schedule["choices"]))
        if schedule.get("kind") == "progressive":
            dropped_most = max(schedule["start_high"], schedule["end_high"])
            dropped_least = min(schedule["start_low"], schedule["end_low"])
            return cls(low=1.0 - dropped_most, high=1.0 - dropped_least)
        return cls((tuple(stage.get("keep", 1.0) for stage in stages),))

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> TrainedBudgets:
        return cls(tuple(tuple(choice) for choice in content["choices"]), content["low"], content["high"])

    def to_dict(self) -> dict[str, Any]:
        return {"choices": [list(choice) for choice in self.choices], "low": self.low, "high": self.high}

    def include(self, keep: Sequence[Keep]) -> bool:
        """Whether the model was trained at `keep`, a budget for each stage."""
        served = FULL if _is_full(keep) else tuple(keep)
        if self.low is not None and self.high is not None:
            ratio = served[0] if len(served) == 1 and isinstance(served[0], float) else math.nan
            return self.low - 1e-9 <= ratio <= self.high + 1e-9
        trained = [FULL if _is_full(choice) else choice for choice in self.choices or (FULL,)]
        return any(len(t) == len(served) and all(map(_same, t, served)) for t in trained)

    def __str__(self) -> str:
        if self.low is not None:
            return f"{self.low:.3g} to {self.high:.3g} of the visual tokens"
        return describe_budgets(self.choices or (FULL,))


def describe_budgets(choices: Sequence[Sequence[Keep]]) -> str:
    """As text, such as `full tokens, 0.5 of the tokens`; the budgets of several stages are joined by `then`."""
    unit = {float: "of the tokens", int: "tokens"}
    reduced = [
        " then ".join(f"{keep:.3g} {unit[type(keep)]}" for keep in choice) for choice in choices if not _is_full(choice)
    ]
    return ", ".join([*(["full tokens"] * any(map(_is_full, choices))), *reduced])


def _is_full(choice: Sequence[Keep]) -> bool:
    return all(_same(keep, 1.0) for keep in choice)


def _same(one: Keep, other: Keep) -> bool:
    """1 is one token, 1.0 all of them."""
    return isinstance(one, float) == isinstance(other, float) and math.isclose(one, other)


def write_reducers(folder: Path, reducers: Sequence[Reducer]) -> None:
    """No stage: the model was trained without a reduction."""
    content = {"format": REDUCER_FORMAT, "stages": [reducer.to_dict() for reducer in reducers]}
    (folder / REDUCER_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_reducers(folder: Path) -> list[Reducer] | None:
    """The reduction that the model was trained with; None: there is no reducer.json."""
    file = folder / REDUCER_FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != REDUCER_FORMAT:
        given = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{file}: format {given!r}, expected {REDUCER_FORMAT}; update dart_train to read it")
    try:
        return [from_config(stage) for stage in content["stages"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: {error}; was it written by a newer version, or is its method in a package that is not installed?"
        ) from error
