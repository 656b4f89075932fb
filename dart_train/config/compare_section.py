"""The section `compare`: checkpoints, methods and budgets, and the questions they answer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .data_section import SourceConfig
from .fields import Count, Keep, NotNegativeInt, Section, Sections, Several, Text


class QuestionSet(SourceConfig):
    """Questions with reference answers."""

    metrics: Several[Text] = Field(default=(), description="names of metrics; empty: compare.metrics")
    kind_metrics: dict[str, Several[Text]] = Field(
        default_factory=dict, description="a kind of question, and the metrics for it in place of the others"
    )
    second_turn: Several[Literal["anew", "cached"]] = Field(
        default=(),
        description="also ask each question after another one about its image: with a prefill of its own (anew), or "
        "from the tokens that the first question kept (cached)",
    )


class Compare(Section):
    """A comparison of checkpoints, methods and budgets."""

    checkpoints: dict[str, str] = Field(
        default_factory=dict, description="a name, and a folder or hub id; empty: model.path as base"
    )
    methods: Several[str | dict[str, Any]] = Field(
        default=("dart",), description="names of methods, or mappings with options"
    )
    budgets: Several[Keep] = Field(
        default=(1.0, 0.333, 0.222, 0.111), description="budgets of every method; full tokens are always measured"
    )
    sets: Sections[QuestionSet] = Field(default=(), description="the question sets")
    metrics: Several[Text] = Field(default=("exact_match",), description="metrics of sets that name none")
    batch_size: Count = Field(default=8, description="questions answered together")
    max_new_tokens: Count = Field(default=32, description="longest answer in tokens")
    timing: bool = Field(default=True, description="also measure latency and memory")
    timing_batch_size: Count = Field(default=1, description="questions answered together while time is measured")
    timing_repeats: Count = Field(default=7, description="measurements of each row, interleaved with all others")
    seed: NotNegativeInt = Field(default=0, description="of the resampling for confidence intervals")
    output_dir: str = Field(default="", description="folder of the results; empty: compare/ in the run folder")
