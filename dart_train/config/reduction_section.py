"""The sections `reduction` and `scorer`: which tokens are kept, and how trained scorers learn to choose them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_serializer, model_validator

from ..reduction.schedule import Elastic, Fixed, Schedule
from .fields import (
    NotNegative,
    NotNegativeInt,
    Positive,
    Section,
    Sections,
    WrittenAsMapping,
    as_mapping,
    custom_error,
)

if TYPE_CHECKING:
    from ..reduction import Reducer, TowerDART


class ReductionConfig(Section):
    """Which tokens are kept: `none`, one method with its options, or a list of stages. The options of a stage are the
    fields of its reducer, which checks them. A schedule moves the budget of a single stage during training; the `keep`
    of the stage is the budget that is served."""

    stages: Sections[dict[str, Any]] = Field(
        default=({"method": "dart", "keep": 0.222, "layer": 2},), description="each a method with its options"
    )
    schedule: Annotated[Schedule, WrittenAsMapping()] = Field(
        default_factory=Elastic, description="how the budget moves during training"
    )
    tower: dict[str, Any] | None = Field(
        default=None,
        description="a stage in the vision tower, before all others: `{tolerance: 0.0}` drops units of repeated "
        "pixels, `{layer: 4, keep: 0.5}` keeps a ratio from block 4 on; null: the entire tower runs",
    )

    def reducers(self) -> list[Reducer]:
        from ..reduction import from_config

        return [from_config(stage) for stage in self.stages]

    def tower_stage(self) -> TowerDART | None:
        from ..reduction import tower_from_config

        return None if self.tower is None else tower_from_config(self.tower)

    def all_stages(self) -> list[Reducer | TowerDART]:
        """What `attach` takes."""
        tower = self.tower_stage()
        return [*([] if tower is None else [tower]), *self.reducers()]

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, value: Any) -> Any:
        return normal_reduction(value)

    @model_serializer
    def _write(self) -> Any:
        """The shortest of the forms that `normal_reduction` reads."""
        if not self.stages:
            return "none"
        others = {"schedule": as_mapping(self.schedule)} | ({} if self.tower is None else {"tower": self.tower})
        if len(self.stages) == 1:
            return {**self.stages[0], **others}
        return {"stages": list(self.stages), **others}


def normal_reduction(value: Any) -> Any:
    """{stages: [...], schedule: {...}} from each of the forms a reduction can be written in:

    reduction: none
    reduction: {method: dart, keep: 64, layer: 2, schedule: {kind: elastic}}
    reduction: [{method: dart, layer: 2, keep: 288}, {method: dart, layer: 8, keep: 64}]
    """
    if isinstance(value, str):
        value = {"method": value}
    if isinstance(value, list):
        value = {"stages": value}
    if not isinstance(value, Mapping):
        raise custom_error(f"given {value!r}, expected a method, a mapping with one, a list of them, or none")
    if not value:
        return {}
    if "stages" in value:
        stages = value["stages"]
        if not isinstance(stages, list | tuple) or (isinstance(stages, list) and not stages):
            expected = "a list of stages, each a mapping with a method"
            raise custom_error(f"given {stages!r}, expected {expected}", key="stages")
        return {**value, "schedule": value.get("schedule") or {"kind": "fixed"}}
    if value.get("method") == "none":
        if len(value) > 1:
            others = ", ".join(str(key) for key in value if key != "method")
            raise custom_error(f"method none takes no options, given {others}", "write `reduction: none`")
        return {"stages": (), "schedule": Fixed()}
    stage = {key: each for key, each in value.items() if key not in ("schedule", "tower")}
    schedule = value.get("schedule") or {"kind": "elastic"}
    return {"stages": [stage], "schedule": schedule, "tower": value.get("tower")}


class Scorer(Section):
    """How the scorers of method `learned` are trained; ignored by other methods."""

    train: bool = Field(default=True, description="false: scorers stay as they are in `path`")
    path: str | None = Field(
        default=None, description="a run, checkpoint or export whose scorers training starts from; null: new ones"
    )
    learning_rate: Positive = Field(default=2e-3, description="of the scorers")
    attention: NotNegative = Field(
        default=1.0,
        description="weight of the loss against the attention of the same weights at full tokens (KL divergence)",
    )
    answer_tokens: NotNegativeInt = Field(
        default=8, description="tokens of each answer whose attention counts, in addition to the last prompt token"
    )
    task: NotNegative = Field(
        default=0.0,
        description="weight of the language model's own loss, which reaches the scores through a relaxed top-k; "
        "the forward keeps exactly the tokens that are served",
    )
    temperature_start: Positive = Field(default=1.0, description="of the relaxed top-k at the first step")
    temperature_end: Positive = Field(
        default=0.1, description="at the last step, falling geometrically; the lower, the closer to the hard choice"
    )
