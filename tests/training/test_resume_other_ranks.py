"""A run of two ranks resumed on another number of ranks or at another ZeRO stage continues as it would have; without
DeepSpeed it is refused before anything is changed, and what the message advises works."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from dart_train.cli.packaging import export
from dart_train.cli.training import train as main
from dart_train.common.distributed import RankInfo
from dart_train.config import load_recipe
from dart_train.training.run import prepare
from tests.fixtures.faults import digests
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import ROOT, free_port, launch, losses

pytestmark = pytest.mark.deepspeed
SHORT = ["train.max_steps=4", "train.save_steps=2", "train.per_device_batch_size=2"]
CHANGES = ("2 to 1", "2 to 3", "3 to 2")
KINDS = {"lora": [], "full": ["parts.language={mode: full}", "parts.vision={mode: full}"]}


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    """At ZeRO-2; and runs that are resumed at another stage."""
    resumed = []
    for change in CHANGES:
        then, now = change[0], change[-1]
        given = [*SHORT, f"train.output_dir={folder / change}"]
        resumed.append({"recipe": str(recipe), "overrides": [*given, f"train.zero_stage={then}"]})
        again = [*given, f"train.zero_stage={now}"]
        resumed.append({"recipe": str(recipe), "overrides": again, "forget": ["checkpoint-4"]})
    return [
        *resumed,
        *(
            {"recipe": str(recipe), "overrides": [*SHORT, f"train.output_dir={folder / kind}", *changes]}
            for kind, changes in KINDS.items()
        ),
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


@pytest.mark.parametrize("change", CHANGES)
def test_resume_at_another_zero_stage_continues_with_the_same_losses(rank_runs: RankRuns, change: str) -> None:
    run = rank_runs.folder / change
    before = [json.loads(line) for line in (run / "uninterrupted.jsonl").read_text().splitlines()]
    expected = [line for line in before if "loss" in line]
    for name in ("loss", "grad_norm", "lr_projector", "lr_language", "visual_after"):
        assert [line[name] for line in losses(run)] == pytest.approx([line[name] for line in expected], rel=1e-4), name
    assert json.loads((run / "checkpoint-4/complete.json").read_text())["stage"] == int(change[-1])


@pytest.mark.parametrize("ranks", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_resume_on_another_number_of_ranks_continues_with_the_same_losses(
    rank_runs: RankRuns, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer ranks take more rows each, more ranks fewer; with another number of rows in a step it is refused."""
    whole, run = rank_runs.folder / "lora", rank_runs.folder / f"on {ranks}"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoint-4")
    shape = [f"train.per_device_batch_size={4 // ranks}", "train.gradient_accumulation_steps=1", "train.zero_stage=1"]
    command = [str(rank_runs.recipe), *SHORT, *shape, f"train.output_dir={run}"]
    if ranks == 1:  # in this process, with what a launcher gives to its only rank
        given = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for key, value in {**given, "MASTER_PORT": str(free_port())}.items():
            monkeypatch.setenv(key, value)
        assert main(command) == 0
    else:
        done = launch(ROOT / "launch/train.py", *command, ranks=ranks)
        assert done.returncode == 0, done.stderr[-4000:]
    for name in ("loss", "grad_norm"):
        expected = [line[name] for line in losses(whole)]
        assert [line[name] for line in losses(run)] == pytest.approx(expected, rel=1e-3), name
    assert json.loads((run / "checkpoint-4/complete.json").read_text())["ranks"] == ranks
    assert not (run / ".resharded").exists()


def test_another_number_of_rows_in_a_step_is_refused(rank_runs: RankRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    run = rank_runs.folder / "lora"
    before = stamps(run)
    monkeypatch.setenv("RANK", "0")  # as a launcher sets them
    monkeypatch.setenv("WORLD_SIZE", "4")
    recipe = load_recipe(rank_runs.recipe, [*SHORT, f"train.output_dir={run}"])
    with pytest.raises(ValueError, match=r"4 rows in a step \(2 ranks x 2 x 1\), now 8 \(4 ranks x 2 x 1\)"):
        prepare(recipe, RankInfo.read())
    assert stamps(run) == before
