"""launch/bench_backends.py: its recipes are valid, and its table compares with the first of a kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_train.config import load_recipe
from launch import bench_backends

ALL = [way for group in bench_backends.ways() for way in group]


@pytest.mark.parametrize("way", ALL, ids=lambda way: way.name)
def test_recipe_of_each_backend_is_valid(way: bench_backends.Way, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(bench_backends.RECIPE.format(folder=tmp_path, steps=3))
    assert load_recipe(file, way.overrides).train.max_steps == 3


def test_table_compares_round_by_round_with_the_first() -> None:
    first = bench_backends.Way("first", 2, [], [2.0, 4.0], [1.0, 1.5], 3.25)
    other = bench_backends.Way("other", 2, [], [1.0, 1.0], [0.5, 0.5], 3.25)
    text = bench_backends.as_text([[first, other]], "command", 64)
    assert "| first | 2 | 3.00 | 1x | 1.50 | 3.2500 |" in text
    assert "| other | 2 | 1.00 | 3.00x (2.00 to 4.00) | 0.50 | 3.2500 |" in text
