from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dart_train.config import load_recipe
from tests.evaluation import scene


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison without a report: the folder of its recipe. Do not change it."""
    folder = tmp_path_factory.mktemp("compare")
    scene.compare_without_report(load_recipe(scene.make(folder), ["compare.timing=true", "compare.timing_repeats=2"]))
    return folder


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of its output folder, to resume from."""
    shutil.copytree(done / "out", tmp_path / "out")
    yield tmp_path / "out"
