"""A run of two ranks, started again on another number of ranks or at another ZeRO stage: refused before anything is
touched, and what the refusal advises works."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dart_train.cli.packaging import export
from dart_train.cli.training import train as main
from tests.fixtures.faults import digests
from tests.fixtures.run_scene import ROOT, launch, losses, make_recipe

pytestmark = pytest.mark.deepspeed
SHORT = ["train.max_steps=4", "train.save_steps=2", "train.per_device_batch_size=2"]
KINDS = {"lora": [], "full": ["parts.language={mode: full}", "parts.vision={mode: full}"]}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of runs of two ranks, ZeRO-2, beside them."""
    folder = tmp_path_factory.mktemp("spread")
    recipe = make_recipe(folder)
    jobs = [
        {"recipe": str(recipe), "overrides": [*SHORT, f"train.output_dir={folder / kind}", *changes]}
        for kind, changes in KINDS.items()
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = launch(ROOT / "tests/fixtures/job_runner.py", str(folder / "jobs.json"), timeout=3000)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return recipe


def stamps(run: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file() and file.name != ".lock"}


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_ranks_are_refused_and_the_advice_works(
    recipe: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    run, out = recipe.parent / kind, recipe.parent / f"{kind}-exported"
    before, held = stamps(run), digests(run)
    assert main([str(recipe), *SHORT, *KINDS[kind], f"train.output_dir={run}"]) == 2
    told = capsys.readouterr().err
    assert "written with ranks 2, now 1 and stage 2, now None" in told and "Nothing was changed" in told
    assert (stamps(run), digests(run)) == (before, held)
    advice = re.search(r"python -m dart_train export (.+?), then model.path=FOLDER", told)
    assert advice is not None
    assert export(advice[1].replace("FOLDER", str(out)).split()) == 0
    again = recipe.parent / f"{kind}-again"
    assert main([str(recipe), *SHORT, *KINDS[kind], f"model.path={out}", f"train.output_dir={again}"]) == 0
    assert losses(again)[-1]["step"] == 4


def test_another_stage_is_refused(recipe: Path) -> None:
    run = recipe.parent / "lora"
    before = stamps(run)
    done = launch(ROOT / "launch/train.py", str(recipe), *SHORT, f"train.output_dir={run}", "train.zero_stage=3")
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("was written with stage 2, now 3") == 1
    assert stamps(run) == before
