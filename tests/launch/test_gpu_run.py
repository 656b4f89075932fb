"""`bash launch/gpu.sh`: every stage runs on a CPU; one that fails or hangs is on the page and stops no other."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from launch.gpu.page import RANKING, write_page
from launch.gpu.running import Stage, run_stage
from launch.gpu.stages import LIMITS, Settings, all_stages
from launch.gpu.trace import summarize
from launch.gpu.training import RUNS, compare

ROOT = Path(__file__).resolve().parents[2]
WRITES = {
    "laws": ["results.xml"],
    "train": ["losses.json", "bf16.log"],
    "profile": ["profile.md", "step.trace.json.gz", "prefill.trace.json.gz"],
} | {name: ["bench.json", "bench.md"] for name in ("prefill", "step", "decode", "select", "distill")}


@pytest.mark.slow
@pytest.mark.deepspeed
def test_gpu_dry_run_on_the_cpu(tmp_path: Path) -> None:
    out, collected = tmp_path / "gpu", tmp_path / "collected"
    command = ["bash", "launch/gpu.sh", "--device", "cpu", "--scale", "0.03", "--out", str(out)]
    env = {**os.environ, "PYTHON": sys.executable, "OUT": str(collected)}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    record = json.loads((out / "stages.json").read_text())
    assert {name: stage["state"] for name, stage in record["stages"].items()} == dict.fromkeys(WRITES, "passed")
    for name, files in WRITES.items():
        assert all((out / name / file).stat().st_size for file in [*files, "log.txt"])
        assert record["stages"][name]["figures"]
    page = (collected / "page.md").read_text()
    assert page in run.stdout and all(f"| {name} | passed |" in page for name in WRITES)
    with tarfile.open(collected / "results.tar.gz") as archive:
        names = archive.getnames()
    assert "gpu/prefill/bench.json" in names and not any("checkpoint-" in name for name in names)


def test_gpu_stage_limits_stay_below_eight_minutes() -> None:
    stages = all_stages(Settings("cuda", 1.0, Path("out"), 80 << 30))
    assert sum(stage.limit for stage in stages) < 480
    assert [stage.name for stage in stages] == list(LIMITS)
    assert {stage.name for stage in stages} == set(RANKING)


def test_gpu_step_checkpoints_where_activations_do_not_fit() -> None:
    for gigabytes, checkpoints in ((80, True), (140, False)):
        stages = {stage.name: stage for stage in all_stages(Settings("cuda", 1.0, Path("out"), gigabytes << 30))}
        assert ("--checkpointing" in stages["step"].command) == checkpoints


def stage(script: str, limit: int = 30) -> Stage:
    def figures(folder: Path) -> list[str]:
        return (folder / "figures.txt").read_text().splitlines()

    return Stage("laws", "a stage of a test", limit, [sys.executable, "-c", script], figures)


def test_gpu_page_shows_the_log_of_a_failed_stage(tmp_path: Path) -> None:
    result = run_stage(stage("raise SystemExit('the reason')"), tmp_path / "laws")
    assert (result.state, result.code) == ("failed", 1)
    page = write_page(tmp_path, "a command", Settings("cpu", 0.03, tmp_path, 0), [result], 1.0)
    assert "### laws: failed, exit code 1" in page and "the reason" in page and "laws/log.txt" in page
    assert json.loads((tmp_path / "stages.json").read_text())["stages"]["laws"]["state"] == "failed"


def test_gpu_stage_without_its_files_is_failed(tmp_path: Path) -> None:
    result = run_stage(stage("print('fine')"), tmp_path / "laws")
    assert result.state == "failed" and "FileNotFoundError" in result.figures[0]


def test_gpu_stage_is_ended_with_its_children_at_its_limit(tmp_path: Path) -> None:
    child = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    script = (
        f"import os, subprocess, sys; os.chdir({str(tmp_path)!r}); open('laws/figures.txt', 'w').write('a figure')\n"
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    result = run_stage(stage(script, limit=8), tmp_path / "laws")
    assert (result.state, result.figures) == ("timed out", ["a figure"])
    assert "limit of 8 s" in result.log_tail()
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 20  # a busy machine takes its time to end a process
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def losses_with(first: float, others: float) -> dict[str, list[float]]:
    plain = [0.1] + [0.5] * 49
    changed = [0.1 * first] + [0.5 * others] * 49
    return {run.name: plain if run.reference is None else changed for run in RUNS}


@pytest.mark.parametrize(
    ("first", "others", "good"), [(1.01, 1.05, True), (1.03, 1.0, False), (1.0, 1.2, False), (1.0, 0.8, False)]
)
def test_gpu_losses_must_be_close_to_those_of_the_cpu(first: float, others: float, good: bool) -> None:
    lines, found = compare(RUNS, losses_with(first, others), 50)
    assert found is good and all(("TOO FAR" in line) is not good for line in lines)


def test_gpu_run_that_stopped_early_is_not_close() -> None:
    losses = losses_with(1.0, 1.0)
    losses["fp16"] = losses["fp16"][:7]
    lines, good = compare(RUNS, losses, 50)
    assert not good and any(line.startswith("fp16: 7 of 50 steps") for line in lines)


def event(cat: str, name: str, ts: float, dur: float, correlation: int | None = None) -> dict[str, object]:
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": 1, "args": args}


def test_gpu_trace_counts_kernels_launched_within_the_selection(tmp_path: Path) -> None:
    """By when the host launched them: they run later."""
    events = [
        event("user_annotation", "selection", 100, 50),
        event("gpu_user_annotation", "selection", 500, 50),
        event("cuda_runtime", "cudaLaunchKernel", 90, 5, 1),
        event("cuda_runtime", "cudaLaunchKernel", 110, 5, 2),
        event("cuda_driver", "cuLaunchKernelEx", 120, 5, 3),
        event("cuda_runtime", "cudaMemcpyAsync", 130, 5, 4),
        event("kernel", "matmul", 120, 1000, 1),
        event("kernel", "sort", 1200, 30, 2),
        event("kernel", "sort", 1300, 20, 3),
        event("gpu_memcpy", "copy", 1400, 10, 4),
        event("cpu_op", "aten::sort", 105, 20),
    ]
    file = tmp_path / "trace.json.gz"
    with gzip.open(file, "wt") as lines:
        json.dump({"traceEvents": events}, lines)
    found = summarize(file, "selection", 0.1, longest=2)
    assert (found.launches, found.selections, found.selection_launches) == (4, 1, 3)
    assert found.seconds == pytest.approx(1060e-6) and found.selection_seconds == pytest.approx(60e-6)
    assert [(name, number) for name, number, _ in found.longest] == [("matmul", 1), ("sort", 2)]


def test_gpu_trace_of_a_cpu_counts_the_innermost_operators(tmp_path: Path) -> None:
    events = [
        event("cpu_op", "aten::linear", 0, 100),
        event("cpu_op", "aten::t", 1, 5),
        event("cpu_op", "aten::mm", 10, 80),
        event("cpu_op", "aten::empty", 11, 1),
        event("cpu_op", "aten::add", 120, 10),
    ]
    file = tmp_path / "trace.json.gz"
    with gzip.open(file, "wt") as lines:
        json.dump({"traceEvents": events}, lines)
    assert [name for name, _, _ in summarize(file, "selection", 0.1).longest] == ["aten::mm", "aten::add"]
