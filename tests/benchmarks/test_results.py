"""The tables that are committed say what was measured, where, and with which command; the rest is "not measured"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dart_train.benchmarks.options import FULL, OURS, WAYS

RESULTS = Path(__file__).parent / "results"
FILES = sorted(file for file in RESULTS.glob("*_cpu.json") if not file.name.startswith("select"))


def rows_of(file: Path) -> dict[str, list[dict[str, Any]]]:
    content = json.loads(file.read_text())
    return {title: table["rows"] for title, table in content["tables"].items()}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_committed_table_names_its_device_versions_and_command(file: Path) -> None:
    content = json.loads(file.read_text())
    assert content["command"].split()[:5] == ["python", "-m", "dart_train", "bench", file.stem.split("_")[0]]
    for fact in ("device", "threads", "cores", "load before", "load after", "torch", "transformers", "dtype"):
        assert content["facts"][fact], fact
    assert file.with_suffix(".md").read_text().startswith(f"`{content['command']}`")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_that_needs_a_gpu_is_said_to_be_measured(file: Path) -> None:
    goals = rows_of(file).get("Goals", [])
    for row in goals:
        assert row["of"] != "full-size GPU" or row["measured"] == "not measured"
        assert row["measured"] == "not measured" or row["reached"] in ("yes", "no")


@pytest.mark.parametrize("file", [f for f in FILES if "step" in f.stem or "prefill" in f.stem], ids=lambda f: f.stem)
def test_the_ratios_of_a_committed_table_are_its_numbers(file: Path) -> None:
    rows = next(rows for title, rows in rows_of(file).items() if title != "Goals")
    found = {(row["model"], row.get("trained"), row["way"]): row for row in rows}
    assert len(found) == len(rows) and {row["way"] for row in rows} <= set(WAYS)
    for (model, trained, way), row in found.items():
        full = found[model, trained, FULL]
        assert full["faster"]["median"] == 1
        if way == OURS:
            assert row["measured / bound"] == pytest.approx(row["faster"]["median"] / row["bound"])
            assert row["peak bytes"] < full["peak bytes"]
