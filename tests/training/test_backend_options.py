"""Options of a recipe under `train.backend` fsdp2 and ddp on two ranks: the losses, kept tokens and overlays of ZeRO-2
on the same rows. Videos are in `test_videos_on_ranks.py`, a stage in the tower and distillation in `test_fsdp2.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import losses

pytestmark = pytest.mark.deepspeed
HOW = {"zero-2": "train.zero_stage=2", "fsdp2": "train.backend=fsdp2", "ddp": "train.backend=ddp"}
OPTIONS = {
    "packed": ["train.padding_free=true", "train.neftune_alpha=5.0", "train.gradient_checkpointing=true"],
    "own_row": ["reduction={method: fastv, row: own, keep: 0.25, layer: 2}", "train.overlay_steps=2"],
}
SHORT = ["train.max_steps=2", "train.per_device_batch_size=4"]


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    rows = json.dumps({"path": str(recipe.parent / "rows.json"), "images": str(recipe.parent / "images"), "limit": 2})
    given = [*SHORT, f"data.validation=[{rows}]", "train.eval_steps=100"]
    return [
        {"recipe": str(recipe), "overrides": [*given, *more, how, f"train.output_dir={folder / f'{name}-{backend}'}"]}
        for name, more in OPTIONS.items()
        for backend, how in HOW.items()
    ]


@pytest.mark.parametrize("backend", ["fsdp2", "ddp"])
@pytest.mark.parametrize("name", OPTIONS)
def test_option_trains_as_with_zero_2(rank_runs: RankRuns, name: str, backend: str) -> None:
    runs = [rank_runs.folder / f"{name}-{each}" for each in (backend, "zero-2")]
    for key in ("loss", "grad_norm", "visual_after"):
        found, expected = ([line[key] for line in losses(run)] for run in runs)
        assert len(found) == 2 and found == pytest.approx(expected, rel=1e-3), key
    for rank in (0, 1):
        found, expected = ((run / f"kept-{rank}.json").read_text() for run in runs)
        assert found == expected
    drawn, wanted = (sorted((run / "overlays").rglob("*.png")) for run in runs)
    assert [file.read_bytes() for file in drawn] == [file.read_bytes() for file in wanted]
    assert bool(drawn) == (name == "own_row")
