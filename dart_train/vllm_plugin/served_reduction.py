"""What is served: the reduction of a checkpoint, the operator's settings, and the budgets that requests may ask for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ..reduction.base import Reducer
from ..reduction.budget import Keep, check_keep, tokens_to_keep
from ..reduction.reducer_file import ReducerFile
from ..reduction.registry import from_config
from ..reduction.servable import default_servable, describe_reducer, nearest_servable, why_not_servable
from ..reduction.trained_budgets import TrainedBudgets, describe_budgets

CONFIG_NAME = "dart_train"  # the attribute of the model's config that carries a ServedReduction, as JSON
KEEP = "dart_keep"  # --hf-overrides of the engine, and mm_processor_kwargs of a request: another budget
UNTRAINED = "dart_untrained"  # --hf-overrides: serve what contradicts the training
REDUCER = "dart_reducer"  # --hf-overrides: a folder whose reducer.json counts, or "none" for full tokens
OVERRIDES = (KEEP, UNTRAINED, REDUCER)
NO_REDUCTION = "none"
_LARGE_IMAGE = 2880  # tokens, at which numbers and ratios are compared


@dataclass(frozen=True)
class ServedReduction:
    """reducer: what each image goes through. budgets: those of the training; None: not known. untrained: others may
    be served. folder, revision: where the scorer's weights are."""

    reducer: Reducer
    budgets: TrainedBudgets | None
    untrained: bool
    folder: str
    revision: str | None = None

    def to_json(self) -> str:
        content = {
            "stage": self.reducer.to_dict(),
            "budgets": None if self.budgets is None else self.budgets.to_dict(),
            "untrained": self.untrained,
            "folder": self.folder,
            "revision": self.revision,
        }
        return json.dumps(content, sort_keys=True)

    @classmethod
    def of(cls, config: Any) -> ServedReduction | None:
        """From a model's config; None: the model is served with full tokens."""
        text = getattr(config, CONFIG_NAME, None)
        return None if text is None else _parse(text)

    @property
    def renumbers(self) -> bool:
        """Kept tokens take the positions 0, 1, 2, ... in place of those that they had among all."""
        return getattr(self.reducer, "positions", "original") == "compact"

    def largest_keep(self) -> Keep:
        """Of the budgets that requests may ask for: what the engine has to reserve memory for."""
        allowed: list[Keep] = [self.reducer.keep]
        if self.untrained or self.budgets is None:
            allowed.append(1.0)
        else:
            allowed += [choice[0] for choice in self.budgets.choices if len(choice) == 1]
            allowed += [] if self.budgets.high is None else [self.budgets.high]
        return max(allowed, key=lambda keep: tokens_to_keep(keep, _LARGE_IMAGE))

    def with_keep(self, keep: object) -> Reducer:
        """The reducer at the budget of a request. Raises ValueError for one that may not be served."""
        if keep is None:
            return self.reducer
        if problem := check_keep(keep):
            raise ValueError(f"{KEEP} of the request: {problem}")
        assert isinstance(keep, int | float)
        if not self.untrained and (problem := _untrained_budget(keep, self.budgets)):
            raise ValueError(f"{KEEP} of the request: {problem}; {_HOW_TO_ALLOW}")
        return replace(self.reducer, keep=keep)


@lru_cache
def _parse(text: str) -> ServedReduction:
    content = json.loads(text)
    budgets = content["budgets"]
    return ServedReduction(
        from_config(content["stage"]),
        None if budgets is None else TrainedBudgets.read(budgets),
        content["untrained"],
        content["folder"],
        content["revision"],
    )


_HOW_TO_ALLOW = f"to serve it all the same, start the engine with --hf-overrides '{{\"{UNTRAINED}\": true}}'"


def decide(
    file: ReducerFile | None, settings: Mapping[str, Any], folder: str, revision: str | None
) -> ServedReduction | None:
    """What to serve, from reducer.json and --hf-overrides; None: full tokens. Raises ValueError with everything that
    cannot be served, or that contradicts the training."""
    if unknown := sorted(set(settings) - set(OVERRIDES)):
        raise ValueError(f"--hf-overrides: {', '.join(unknown)} is not known; expected {', '.join(OVERRIDES)}")
    if settings.get(REDUCER) == NO_REDUCTION:
        return None
    keep, untrained = settings.get(KEEP), settings.get(UNTRAINED, False)
    if keep is not None and (problem := check_keep(keep)):
        raise ValueError(f"--hf-overrides: {KEEP}: {problem}")
    if not isinstance(untrained, bool):
        raise ValueError(f"--hf-overrides: {UNTRAINED}={untrained!r}: expected true or false")
    file = ReducerFile(()) if file is None else file
    if file.tower is not None:
        raise ValueError(
            f"{folder} has a stage in the vision tower, which vLLM does not run; train without it, or serve the model "
            "with python -m dart_train serve"
        )
    stages = list(file.stages)
    if not stages and keep is None:
        return None
    if not stages:
        stages = [default_servable()]
    if keep is not None:
        stages[-1] = replace(stages[-1], keep=keep)
    if reasons := why_not_servable(stages):
        raise ValueError(_not_servable(stages, reasons, folder))
    problems = [] if untrained else _contradictions(stages[0], file)
    if problems:
        raise ValueError(f"{folder}: {'; '.join(problems)}; {_HOW_TO_ALLOW}")
    return ServedReduction(stages[0], file.trained_budgets, untrained, folder, revision)


def _contradictions(stage: Reducer, file: ReducerFile) -> list[str]:
    """What is served against what is known of the training."""
    problems = []
    if file.trained_stages is not None:
        trained = [replace(each, keep=stage.keep) for each in file.trained_stages]
        if trained != [stage]:
            was = ", then ".join(map(describe_reducer, file.trained_stages)) or "without a reduction"
            problems.append(f"the model was trained {'with ' * bool(trained)}{was}, not with {describe_reducer(stage)}")
    calibrated = file.calibration is not None and stage.keep == file.stages[0].keep  # chosen on purpose, and measured
    if not calibrated and (problem := _untrained_budget(stage.keep, file.trained_budgets)):
        problems.append(problem)
    return problems


def _untrained_budget(keep: Keep, budgets: TrainedBudgets | None) -> str | None:
    if budgets is None or budgets.include([keep]):
        return None
    return f"the model was trained at {budgets}, not at {describe_budgets([[keep]])}"


def _not_servable(stages: list[Reducer], reasons: list[str], folder: str) -> str:
    return (
        f"the reduction of {folder} cannot be served by vLLM: {'; '.join(reasons)}. The nearest setting that can: "
        f"{describe_reducer(nearest_servable(stages))} (train with it, or convert the checkpoint: python -m dart_train "
        "export RUN --for vllm --convert). To serve the reduction as it was trained: python -m dart_train serve. To "
        f'serve full tokens: --hf-overrides \'{{"{REDUCER}": "{NO_REDUCTION}"}}\''
    )
