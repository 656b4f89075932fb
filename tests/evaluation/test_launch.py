"""The compare command under launchers: ranks share the questions, and a killed comparison resumes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.evaluation.scene import NUMBER, lines
from tests.fixtures.run_scene import ROOT, launch, run

SCRIPT = ROOT / "launch" / "compare.py"


@pytest.mark.deepspeed
@pytest.mark.slow
def test_two_ranks_resume_after_a_kill_and_answer_like_one(done: Path, tmp_path: Path) -> None:
    out, answers = tmp_path / "out", (done / "out" / "results.jsonl").read_text().splitlines(keepends=True)
    out.mkdir()
    (out / "results.jsonl").write_text("".join(answers[:20]) + answers[20][:57])  # in the middle of a line
    (out / "results.rank1.jsonl").write_text("".join(answers[25:30]))
    finished = launch(SCRIPT, str(done / "compare.yaml"), f"compare.output_dir={out}")
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert f"25 of {len(answers)} answers exist already" in finished.stdout + finished.stderr
    assert lines(out) == lines(done / "out")
    assert (out / "table.csv").read_text() == (done / "out" / "table.csv").read_text()
    assert not list(out.glob("results.rank*")) and (out / "report.html").is_file()


@pytest.mark.drill
def test_resume_after_sigkill(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPT), str(done / "compare.yaml"), f"compare.output_dir={out}"]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file, patience = out / "results.jsonl", time.monotonic() + 300
    while not (file.exists() and file.stat().st_size) and time.monotonic() < patience:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = len(lines(out)) if file.read_bytes().endswith(b"\n") else 0
    assert before < 5 * NUMBER, "it was done before it could be killed"
    again = run(command, timeout=300)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "exist already" in again.stderr + again.stdout
    assert lines(out) == lines(done / "out")


def test_shipped_compare_recipe_runs_on_a_tiny_model(done: Path, tmp_path: Path) -> None:
    """Only its model, checkpoints, questions and sizes are replaced."""
    from dart_train.config import load_recipe
    from dart_train.evaluation.comparison import compare

    shutil.copy(done / "questions.json", tmp_path)
    model = done / "llava"
    recipe = load_recipe(
        ROOT / "recipes" / "compare.yaml",
        [
            f"model.path={model}",
            f"compare.checkpoints={{base: {model}, control: {model}}}",
            f"compare.sets.0.path={done}/questions.json",
            f"compare.sets.0.images={done}/images",
            "compare.sets.0.limit=4",
            "compare.budgets=[0.222]",
            "compare.max_new_tokens=2",
            "compare.timing_repeats=1",
            f"compare.output_dir={tmp_path}/out",
        ],
        needs=("compare.sets",),
    )
    results = compare(recipe)
    assert results is not None and len(results.records) == 2 * 6 * 4 and len(results.costs) == 12
    assert (tmp_path / "out" / "report.html").is_file()
