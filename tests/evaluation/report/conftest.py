from __future__ import annotations

from pathlib import Path

import pytest

from dart_train.config import load_recipe
from dart_train.evaluation.comparison import compare
from dart_train.evaluation.results import ComparisonResults

MORE = (
    "compare.checkpoints={base: FOLDER/llava, twin: FOLDER/llava}",
    "compare.methods=[dart, random, pooling, {method: dart, text_pivots: 0}, {method: dart, merge: nearest}]",
    "compare.budgets=[4]",
    "compare.metrics=[exact_match, anls]",
    "compare.sets.0.kind_metrics={reading: [contains]}",
    "compare.timing=true",
    "compare.timing_repeats=1",
    "log.report_to=[wandb]",
    "log.mode=offline",
)


@pytest.fixture(scope="session")
def results(done: Path, tmp_path_factory: pytest.TempPathFactory) -> ComparisonResults:
    """A comparison with every part of the report."""
    out = tmp_path_factory.mktemp("report") / "out"
    overrides = [each.replace("FOLDER", str(done)) for each in MORE]
    found = compare(load_recipe(done / "compare.yaml", [*overrides, f"compare.output_dir={out}"]))
    assert found is not None
    return found


@pytest.fixture(scope="session")
def reported(results: ComparisonResults) -> Path:
    """The folder that it has written."""
    return results.folder
