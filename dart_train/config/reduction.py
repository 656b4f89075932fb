"""The `reduction` section: which method, in which stages, and how the budget moves during training.

    reduction: none
    reduction: {method: dart, keep: 64, layer: 2, schedule: {kind: elastic}}
    reduction: [{method: dart, layer: 2, keep: 288}, {method: dart, layer: 8, keep: 64}]

The options of a stage are the fields of its reducer, which checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..reduction.schedule import Elastic, Fixed, Schedule
from .errors import Problem, expected, join
from .reader import INVALID, Reader, plain

if TYPE_CHECKING:
    from ..reduction import Reducer


@dataclass(frozen=True)
class Reduction:
    """No stage: no reduction. `schedule` moves the budget of a single stage; its `keep` is what is served."""

    stages: tuple[dict[str, Any], ...] = ({"method": "dart", "keep": 0.222, "layer": 2},)
    schedule: Schedule = field(default_factory=Elastic)

    def reducers(self) -> list[Reducer]:
        from ..reduction import from_config

        return [from_config(stage) for stage in self.stages]

    @classmethod
    def read_plain(cls, reader: Reader, value: Any, path: str) -> Any:
        """Each of the forms above, and {stages: [...], schedule: ...}."""
        value = {"method": value} if isinstance(value, str) else value
        if isinstance(value, list):
            return _several(reader, value, None, path, path)
        if not isinstance(value, Mapping):
            return reader.note(expected(path, value, "a method, a mapping with one, a list of them, or none"))
        if "stages" in value:
            for key in value.keys() - {"stages", "schedule"}:
                reader.note(Problem(join(path, key), "unknown key beside stages", "write it into each stage"))
            return _several(reader, value["stages"], value.get("schedule"), path, join(path, "stages"))
        stage = {key: each for key, each in value.items() if key != "schedule"}
        if stage.get("method") == "none":
            return _none(reader, value, path)
        schedule = reader.read(Schedule, value.get("schedule") or {"kind": "elastic"}, join(path, "schedule"))
        good = _check_stage(reader, stage, path)
        return cls((stage,), schedule) if good and schedule is not INVALID else INVALID

    def to_plain(self) -> Any:
        if not self.stages:
            return "none"
        if len(self.stages) == 1:
            return {**plain(self.stages[0]), "schedule": plain(self.schedule)}
        return {"stages": plain(self.stages), "schedule": plain(self.schedule)}


def _none(reader: Reader, value: Mapping[str, Any], path: str) -> Any:
    if len(value) == 1:
        return Reduction((), Fixed())
    others = ", ".join(str(key) for key in value if key != "method")
    what = f"method none takes no options, given {others}"
    return reader.note(Problem(path, what, "write `reduction: none`"))


def _several(reader: Reader, stages: Any, schedule: Any, path: str, at: str) -> Any:
    if not isinstance(stages, list) or not stages:
        return reader.note(expected(at, stages, "a list of stages, each a mapping with a method"))
    good = [_check_stage(reader, stage, join(at, i)) for i, stage in enumerate(stages)]
    read = reader.read(Schedule, schedule or {"kind": "fixed"}, join(path, "schedule"))
    return Reduction(tuple(stages), read) if all(good) and read is not INVALID else INVALID


def _check_stage(reader: Reader, stage: Any, path: str) -> bool:
    """Whether a reducer can be made of it."""
    if not isinstance(stage, Mapping):
        reader.note(expected(path, stage, "a mapping with a method and its options"))
        return False
    if "keep" not in stage and stage.get("method") != "keep_all":
        reader.note(Problem(join(path, "keep"), "missing", "expected a number of tokens or a ratio"))
    wrong = method_fault(stage)
    if wrong:
        reader.note(Problem(path, wrong))
    return wrong is None


def method_fault(config: Mapping[str, Any]) -> str | None:
    """What the registry says against a method and its options, or None."""
    from ..reduction import from_config

    try:
        from_config(config)
    except ValueError as error:
        return str(error)
    return None
