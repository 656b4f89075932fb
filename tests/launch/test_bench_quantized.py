"""launch/bench_quantized.py: its recipes are valid, and its table compares step by step with the first way."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_train.config import load_recipe
from launch import bench_quantized
from launch.bench_backends import RECIPE


@pytest.mark.parametrize("way", bench_quantized.WAYS)
def test_recipe_of_each_way_is_valid(way: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(folder=tmp_path, steps=3))
    recipe = load_recipe(file, [*bench_quantized.COMMON, *bench_quantized.WAYS[way]])
    assert recipe.train.precision == "bf16" and recipe.model.dtype == "bfloat16"


def test_table_compares_with_the_first() -> None:
    memory = {"weights": 0.75, "resident": 1.0, "peak": 2.0, "loss": 3.25}
    first = [{**memory, "seconds": [2.0, 4.0]}, {**memory, "seconds": [2.0, 2.0]}]
    other = [{**memory, "weights": 0.25, "seconds": [4.0, 6.0]}, {**memory, "seconds": [4.0, 4.0]}]
    text = bench_quantized.as_text({"bf16": first, "nf4": other}, "command", 64)
    assert "| bf16 | 0.75 | 1.00 | 2.00 | 2.0 | 1x | 3.2500 |" in text
    assert "| nf4 | 0.75 | 1.00 | 2.00 | 4.0 | 2.00x (1.50 to 2.00) | 3.2500 |" in text
