"""The page: where it ran, the figures of each stage with the most telling stage first, then stage by stage."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .running import Result
from .stages import Settings

PACKAGES = ("torch", "triton", "transformers", "deepspeed", "peft", "accelerate", "datasets", "flash-attn")
# By importance of the figures, not in the order of the runs.
RANKING = ("prefill", "step", "decode", "select", "profile", "laws", "train", "distill")


def write_page(out: Path, command: str, settings: Settings, results: list[Result], seconds: float) -> str:
    """page.md, and stages.json for programs; returns the page."""
    lines = ["# GPU run", "", f"`{command}`", ""]
    lines += [f"- {name}: {value}" for name, value in facts(settings).items()]
    lines += [f"- all stages: {seconds:.0f} s", ""]
    if settings.dry:
        lines += ["A dry run on a CPU at a small scale: it shows that every stage runs. Its figures mean nothing.", ""]
    lines += ["## Figures", ""]
    for result in sorted(results, key=lambda result: RANKING.index(result.stage.name)):
        lines += [f"- {result.stage.name}: {figure}" for figure in result.figures[:6] or ["nothing measured"]]
    lines += ["", "## Stages", "", "| stage | state | seconds | limit | what |", "| --- | --- | --- | --- | --- |"]
    for result in results:
        stage = result.stage
        lines.append(f"| {stage.name} | {result.state} | {result.seconds:.0f} | {stage.limit} | {stage.what} |")
    for result in results:
        if result.state != "passed":
            lines += ["", f"### {result.stage.name}: {result.state}, exit code {result.code}", ""]
            lines += [f"Log: {result.log.relative_to(out)}; its last lines:", "", "```", result.log_tail(), "```"]
    page = "\n".join(lines) + "\n"
    (out / "page.md").write_text(page, encoding="utf-8")
    record = {
        "command": command,
        "facts": facts(settings),
        "stages": {
            r.stage.name: {"state": r.state, "code": r.code, "seconds": round(r.seconds, 1), "figures": r.figures}
            for r in results
        },
    }
    (out / "stages.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return page


def facts(settings: Settings) -> dict[str, str]:
    found = {"device": _device(settings.device), "python": platform.python_version(), "commit": _commit()}
    if settings.device == "cuda":
        found["cuda"] = str(torch.version.cuda)
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _device(device: str) -> str:
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / (1 << 30):.0f} GiB"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


def _commit() -> str:
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "not known"
    return found.stdout.strip()
