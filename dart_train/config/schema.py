"""A recipe as a pydantic model. Each section has a file (`train_section.py`) with the meaning of its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from ..reduction.schedule import Distill
from .compare_section import Compare, QuestionSet
from .data_section import Data, SourceConfig, VideoConfig
from .fields import Section, WrittenAsMapping
from .model_section import Attention, Lora, Model, Part, Parts
from .reduction_section import ReductionConfig, Scorer, normal_reduction
from .train_section import LearningRateSchedule, Log, Optimizer, Preference, Train
from .yaml import dump

__all__ = [
    "Attention",
    "Compare",
    "Data",
    "LearningRateSchedule",
    "Log",
    "Lora",
    "Model",
    "Optimizer",
    "Part",
    "Parts",
    "Preference",
    "QuestionSet",
    "Recipe",
    "ReductionConfig",
    "Scorer",
    "SourceConfig",
    "Train",
    "VideoConfig",
    "normal_reduction",
    "plain",
]


class Recipe(Section):
    """Everything about a run."""

    model: Model
    reduction: ReductionConfig = Field(default_factory=ReductionConfig)
    parts: Parts = Field(default_factory=Parts)
    data: Data = Field(default_factory=Data)
    distill: Annotated[Distill, WrittenAsMapping()] = Field(default_factory=Distill)
    train: Train = Field(default_factory=Train)
    preference: Preference = Field(default_factory=Preference)
    scorer: Scorer = Field(default_factory=Scorer)
    log: Log = Field(default_factory=Log)
    compare: Compare = Field(default_factory=Compare)

    @property
    def has_scorer(self) -> bool:
        return any(stage.get("method") == "learned" for stage in self.reduction.stages)

    @property
    def trains_scorer(self) -> bool:
        return self.has_scorer and self.scorer.train

    @property
    def trains_scorer_alone(self) -> bool:
        """Nothing of the model is trained. Where scorers learn from attention only, a step is one forward at full
        tokens."""
        return self.trains_scorer and all(part.mode == "frozen" for part in self.parts.named().values())

    @property
    def trains_at_full_tokens(self) -> bool:
        """A step is one forward at full tokens: scorers learn from its attention, and nothing else is trained."""
        return self.trains_scorer_alone and not self.scorer.task

    @property
    def runs_teacher(self) -> bool:
        """A step also runs the layers after the reduction at a second budget: for `distill`, or for the attention that
        scorers learn from."""
        if self.trains_at_full_tokens:
            return False
        return self.distill.enabled or (self.trains_scorer and self.scorer.attention > 0)

    def to_dict(self) -> dict[str, Any]:
        """Mappings, lists and scalars, with every default written out."""
        written: dict[str, Any] = plain(self.model_dump())
        return written

    def to_yaml(self) -> str:
        return dump(self.to_dict())


def plain(value: Any) -> Any:
    """Tuples become lists."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
