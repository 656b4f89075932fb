"""A run of two ranks resumed on another number of ranks or at another ZeRO stage: refused before anything is changed,
and what the message advises works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dart_train.cli.packaging import export
from dart_train.cli.training import train as main
from dart_train.common.distributed import RankInfo
from dart_train.config import load_recipe
from dart_train.training.run import prepare
from tests.fixtures.faults import digests
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import losses

pytestmark = pytest.mark.deepspeed
SHORT = ["train.max_steps=4", "train.save_steps=2", "train.per_device_batch_size=2"]
KINDS = {"lora": [], "full": ["parts.language={mode: full}", "parts.vision={mode: full}"]}


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    """At ZeRO-2."""
    return [
        {"recipe": str(recipe), "overrides": [*SHORT, f"train.output_dir={folder / kind}", *changes]}
        for kind, changes in KINDS.items()
    ]


def stamps(run: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file() and file.name != ".lock"}


@pytest.mark.parametrize("kind", KINDS)
def test_resume_on_fewer_ranks_is_refused_and_the_advice_works(
    rank_runs: RankRuns, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    recipe, run, out = rank_runs.recipe, rank_runs.folder / kind, rank_runs.folder / f"{kind}-exported"
    before, held = stamps(run), digests(run)
    assert main([str(recipe), *SHORT, *KINDS[kind], f"train.output_dir={run}"]) == 2
    message = capsys.readouterr().err
    assert "written with ranks 2, now 1 and stage 2, now None" in message and "Nothing was changed" in message
    assert (stamps(run), digests(run)) == (before, held)
    advice = re.search(r"python -m dart_train export (.+?), then model.path=FOLDER", message)
    assert advice is not None
    assert export(advice[1].replace("FOLDER", str(out)).split()) == 0
    again = rank_runs.folder / f"{kind}-again"
    assert main([str(recipe), *SHORT, *KINDS[kind], f"model.path={out}", f"train.output_dir={again}"]) == 0
    assert losses(again)[-1]["step"] == 4


def test_resume_at_another_zero_stage_is_refused(rank_runs: RankRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    run = rank_runs.folder / "lora"
    before = stamps(run)
    monkeypatch.setenv("RANK", "0")  # as a launcher sets them
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = load_recipe(rank_runs.recipe, [*SHORT, f"train.output_dir={run}", "train.zero_stage=3"])
    with pytest.raises(ValueError, match="was written with stage 2, now 3"):
        prepare(recipe, RankInfo.read())
    assert stamps(run) == before
