"""The run ends after some validations in a row without a better metric."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback

from ..config import Train

_COUNTER = "early_stopping_patience_counter"


class EarlyStopping(EarlyStoppingCallback):
    """Transformers' callback, which also saves the step that it ends at, and counts on in a resumed run."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.early_stopping_patience_counter = _counted(state.stateful_callbacks)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        super().on_evaluate(args, state, control, metrics, **kwargs)
        if self.early_stopping_patience_counter < self.early_stopping_patience:
            return
        control.should_save = True
        if state.is_world_process_zero:
            print(
                f"early stopping at step {state.global_step}: {args.metric_for_best_model} has not improved in "
                f"{self.early_stopping_patience_counter} validations; the best was that of step "
                f"{state.best_global_step}",
                file=sys.stderr,
                flush=True,
            )


def make_early_stopping(train: Train) -> list[EarlyStopping]:
    """One callback, or none."""
    if train.early_stopping_patience is None:
        return []
    return [EarlyStopping(train.early_stopping_patience, train.early_stopping_threshold)]


def has_stopped_early(checkpoint: Path | None, train: Train) -> bool:
    """Whether the run of this checkpoint ended by early stopping. With a larger patience it continues."""
    file = None if checkpoint is None else checkpoint / "trainer_state.json"
    if train.early_stopping_patience is None or file is None or not file.is_file():
        return False
    state = json.loads(file.read_text(encoding="utf-8"))
    return _counted(state.get("stateful_callbacks") or {}) >= train.early_stopping_patience


def _counted(states: dict[str, Any]) -> int:
    stored: Any = states.get(EarlyStopping.__name__) or {}
    stored = stored[0] if isinstance(stored, list) else stored
    return int(stored.get("attributes", {}).get(_COUNTER, 0))
