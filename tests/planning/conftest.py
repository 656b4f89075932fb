"""Tiny models, generated rows, and a recipe for them; `datasets` caches in a folder of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from dart_train.planning.predict import PlanInputs
from data import shapes
from tests.planning.cases import inputs_of
from tests.zoo import FAMILIES, save_folder


@pytest.fixture(scope="package", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="package")
def rows_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    shapes.main(["--out", str(folder), "--train", "50", "--difficulty", "tiny", "--workers", "1"])
    return folder


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in FAMILIES:
        save_folder(name, folder / name)
    return folder


@pytest.fixture(scope="package")
def text(models: Path, rows_folder: Path) -> str:
    return f"""
model: {{path: {models}/llava}}
reduction: {{method: dart, keep: 0.222, layer: 2}}
data: {{train: [{{path: {rows_folder}/train.json, images: {rows_folder}/images}}], workers: 0}}
train: {{precision: fp32, per_device_batch_size: 4}}
"""


@pytest.fixture(scope="package")
def inputs(text: str) -> PlanInputs:
    """Of the text as it is, on one rank."""
    return inputs_of(text)
