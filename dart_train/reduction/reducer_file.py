"""reducer.json: the reduction of a checkpoint, and how the model was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base import Reducer
from .registry import from_config
from .tower import TowerDART, tower_from_config
from .trained_budgets import TrainedBudgets

REDUCER_FILE = "reducer.json"
REDUCER_FORMAT = 1  # raise it when the file changes in a way that older readers would misread


@dataclass(frozen=True)
class ReducerFile:
    """What reducer.json says.

    stages: the reduction to attach or to serve; none: full tokens. tower: the stage in the vision tower before them.
    trained_stages, trained_budgets: of the training; None: not recorded (files of earlier versions).
    calibration: how the budgets of `stages` were chosen after the training (see `evaluation/calibration.py`); None:
    they were not.
    """

    stages: tuple[Reducer, ...]
    trained_stages: tuple[Reducer, ...] | None = None
    trained_budgets: TrainedBudgets | None = None
    calibration: Mapping[str, Any] | None = None
    tower: TowerDART | None = None

    def to_dict(self) -> dict[str, Any]:
        content: dict[str, Any] = {"format": REDUCER_FORMAT, "stages": [stage.to_dict() for stage in self.stages]}
        if self.tower is not None:
            content["tower"] = self.tower.to_dict()
        trained: dict[str, Any] = {}
        if self.trained_stages is not None:
            trained["stages"] = [stage.to_dict() for stage in self.trained_stages]
        if self.trained_budgets is not None:
            trained["budgets"] = self.trained_budgets.to_dict()
        if trained:
            content["trained"] = trained
        if self.calibration is not None:
            content["calibration"] = dict(self.calibration)
        return content

    def to_text(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def parse(cls, content: Any, source: str | Path) -> ReducerFile:
        """From the content of the file; `source` is named in errors."""
        if not isinstance(content, dict) or content.get("format") != REDUCER_FORMAT:
            given = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{source}: format {given!r}, expected {REDUCER_FORMAT}; update dart_train to read it")
        try:
            trained = content.get("trained", {})
            stages, budgets, tower = trained.get("stages"), trained.get("budgets"), content.get("tower")
            return cls(
                tuple(from_config(stage) for stage in content["stages"]),
                None if stages is None else tuple(from_config(stage) for stage in stages),
                None if budgets is None else TrainedBudgets.read(budgets),
                content.get("calibration"),
                None if tower is None else tower_from_config(tower),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{source}: {error}; was it written by a newer version, or is its method in a package that is not "
                "installed?"
            ) from error


def write_reducers(
    folder: Path,
    reducers: Sequence[Reducer],
    trained: Sequence[Reducer] | None = None,
    budgets: TrainedBudgets | None = None,
    calibration: Mapping[str, Any] | None = None,
    tower: TowerDART | None = None,
) -> None:
    """reducers: to attach or to serve; no stage: full tokens. trained: the reduction of the training, where it was
    another one; budgets: those of the training. calibration: see `ReducerFile`."""
    stages = tuple(reducers)
    found = ReducerFile(stages, stages if trained is None else tuple(trained), budgets, calibration, tower)
    (folder / REDUCER_FILE).write_text(found.to_text(), encoding="utf-8")


def read_reducer_file(folder: Path) -> ReducerFile | None:
    """None: there is no reducer.json."""
    file = folder / REDUCER_FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return ReducerFile.parse(content, file)


def read_reducers(folder: Path) -> list[Reducer] | None:
    """The reduction to attach; None: there is no reducer.json."""
    found = read_reducer_file(folder)
    return None if found is None else list(found.stages)
