"""A few rows and images; `datasets` caches in a folder of the test."""

import json

import datasets
import pytest

from tests.data.images import noise


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def llava_row(number: int, image: str | None = None) -> dict:
    mark = "<image>\n" if image else ""
    row = {
        "id": f"row-{number}",
        "conversations": [
            {"from": "human", "value": f"{mark}What is number {number}?"},
            {"from": "gpt", "value": f"It is {number}."},
        ],
    }
    return {**row, "image": image} if image else row


@pytest.fixture
def image_folder(tmp_path):
    """Three images: 0.png, 1.png, 2.png."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        noise(seed=number).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def llava_rows():
    """Six rows; those with an odd number have no image."""
    return [llava_row(n, f"{n // 2}.png" if n % 2 == 0 else None) for n in range(6)]


@pytest.fixture
def llava_file(tmp_path, llava_rows):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(llava_rows))
    return path
