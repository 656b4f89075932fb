from __future__ import annotations

from pathlib import Path

import pytest

from dart_train.config import load_recipe
from dart_train.evaluation.comparison import compare
from tests.evaluation import scene

MORE = (
    "compare.checkpoints={base: FOLDER/llava, twin: FOLDER/llava}",
    "compare.methods=[dart, random, pooling, {method: dart, text_pivots: 0}, {method: dart, merge: nearest}]",
    "compare.budgets=[4]",
    "compare.metrics=[exact_match, anls]",
    "compare.sets.0.kind_metrics={reading: [contains]}",
    "compare.timing=true",
    "compare.timing_repeats=2",
    "log.report_to=[wandb]",
    "log.mode=offline",
)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a comparison with every part of the report has written."""
    folder = tmp_path_factory.mktemp("report")
    overrides = [each.replace("FOLDER", str(folder)) for each in MORE]
    results = compare(load_recipe(scene.make(folder), overrides))
    assert results is not None
    return results.folder
