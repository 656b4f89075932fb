"""Every command of the README and of the first run in launch/README.md runs, or names what it needs that a test does
not have; every named file exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from tests.fixtures.run_scene import free_port

ROOT = Path(__file__).parents[1]
NEEDS = re.compile(r"#.*\bneeds: \S")
# Run elsewhere: what runs this test itself, and what takes minutes.
ELSEWHERE = {
    "bash launch/test.sh": ".ci/run",
    "bash launch/demo.sh": "tests/demo",
    "python -m dart_train bench select": "tests/benchmarks",
    "python -m dart_train bench all": "tests/benchmarks",
}
# The same commands on less data, so that all of them take seconds.
SMALLER = {"--train 4800": "--train 12", "--validation 40": "--validation 2", "--test 85": "--test 2"}
LESS = {
    "launch/train.py": "train.max_steps=2 train.save_steps=2 data.workers=0 'train.eval_budgets=[0.111]'",
    "dart_train compare": "compare.timing=false 'compare.budgets=[0.111]' 'compare.methods=[dart]'",
    "dart_train plan": "--seconds 0.1",
}
VERBS = "python -m dart_train "


def commands() -> list[str]:
    launching = (ROOT / "launch" / "README.md").read_text(encoding="utf-8")
    first_run = launching[launching.index("## First run") : launching.index("## Launchers")]
    text = (ROOT / "README.md").read_text(encoding="utf-8") + first_run
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def bare(line: str) -> str:
    return re.sub(r"\s+#.*", "", line).strip()


def run_here() -> list[str]:
    return [bare(line) for line in commands() if not NEEDS.search(line) and bare(line) not in ELSEWHERE]


def smaller(command: str) -> str:
    for much, little in SMALLER.items():
        command = command.replace(much, little)
    for part, changes in LESS.items():
        command += f" {changes}" * (part in command)
    launcher = f"{sys.executable} -m deepspeed.launcher.runner --master_port {free_port()} "
    command = re.sub("^deepspeed ", launcher, command)
    return command.replace("python ", f"{sys.executable} ", 1) if command.startswith("python ") else command


def test_readme_has_every_command() -> None:
    from dart_train.cli.main import COMMANDS

    text = "\n".join(commands())
    missing = [name for name in COMMANDS if f"dart_train {name}" not in text and f"launch/{name}.py" not in text]
    assert not missing


def test_commands_run_elsewhere_are_in_the_readme() -> None:
    assert set(ELSEWHERE) <= {bare(line) for line in commands()}


def test_readme_names_existing_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\b(?:recipes|launch|data|tests|dart_train)/[\w./]+\w", text)
    made = ("data/shapes_tiny", "data/shapes_asked")  # by the commands themselves
    missing = [name for name in named if not name.startswith(made) and not (ROOT / name).exists()]
    assert named and not missing


def test_tests_readme_names_existing_files() -> None:
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Guarantees") :]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("|") and "`" in line.split("|")[2]]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(rows) > 30 and not [name for name in named if not (ROOT / "tests" / name).exists()]


@pytest.mark.deepspeed
def test_readme_commands_run(tmp_path: Path) -> None:
    for folder in ("launch", "recipes", "data"):
        ignored = shutil.ignore_patterns("__pycache__", "shapes_*")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    selected = run_here()
    assert len(selected) > 10
    for verbs, following in groupby(selected, lambda command: command.startswith(VERBS)):
        for command in [in_one_process(list(following), tmp_path)] if verbs else map(smaller, following):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env={**os.environ, **settings},
                capture_output=True,
                text=True,
                timeout=1200,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
            if verbs:
                for name, result in json.loads((tmp_path / "results.json").read_text()).items():
                    assert result["code"] == 0, f"{name}\n{result['out'][-1500:]}\n{result['err'][-3000:]}"


def in_one_process(commands: list[str], folder: Path) -> str:
    """The command that runs these commands of dart_train, and writes results.json."""
    calls = [{"name": command, "argv": shlex.split(smaller(command))[3:]} for command in commands]
    (folder / "calls.json").write_text(json.dumps(calls))
    return f"{sys.executable} {ROOT / 'tests/fixtures/run_commands.py'} calls.json results.json"
