"""reducer.json: what is served, and how the model was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dart_train.reduction import DART
from dart_train.reduction.reducer_file import (
    REDUCER_FILE,
    ReducerFile,
    read_reducer_file,
    read_reducers,
    write_reducers,
)
from dart_train.reduction.trained_budgets import TrainedBudgets

SERVED, TRAINED = DART(keep=16, layer=0, text_pivots=0), DART(keep=64)


def test_round_trip_with_the_training(tmp_path: Path) -> None:
    assert read_reducer_file(tmp_path) is None
    budgets = TrainedBudgets(((1.0,), (64,)))
    write_reducers(tmp_path, [SERVED], trained=[TRAINED], budgets=budgets)
    assert read_reducer_file(tmp_path) == ReducerFile((SERVED,), (TRAINED,), budgets)
    assert read_reducers(tmp_path) == [SERVED]


def test_what_is_written_in_training_is_what_was_trained(tmp_path: Path) -> None:
    write_reducers(tmp_path, [TRAINED])
    assert read_reducer_file(tmp_path) == ReducerFile((TRAINED,), (TRAINED,))


def test_files_of_earlier_versions_do_not_say_how_the_model_was_trained(tmp_path: Path) -> None:
    content = {"format": 1, "stages": [TRAINED.to_dict()]}
    (tmp_path / REDUCER_FILE).write_text(json.dumps(content))
    assert read_reducer_file(tmp_path) == ReducerFile((TRAINED,))


@pytest.mark.parametrize("content", [{"format": 1}, {"format": 1, "stages": [], "trained": 3}, {"format": 9}, []])
def test_other_content_is_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / REDUCER_FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"reducer\.json"):
        read_reducer_file(tmp_path)
