"""The wheel is complete: installed without the checkout, every command starts, a model is attached and trained."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from data.scenes.writer import ShapesSettings, write

ROOT = Path(__file__).parents[1]
BUILD = ("pyproject.toml", "LICENSE", "README.md")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, because setuptools writes into the folder that it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "dart_train", folder / "source" / "dart_train", ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILD:
        shutil.copy(ROOT / name, folder / "source" / name)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder))
    run([sys.executable, "-m", "pip", "wheel", str(folder / "source"), *options], folder)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """The Python of an environment with the wheel and the libraries of this one, but without the checkout. A path in a
    .pth file is only added to sys.path: the .pth files in that folder, such as that of an editable install, are not
    read."""
    environment = wheel.parent / "environment"
    run([sys.executable, "-m", "venv", "--without-pip", str(environment)], wheel.parent)
    python = environment / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)],
        wheel.parent)  # fmt: skip
    [packages] = (environment / "lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(command: list[str], folder: Path, expected: int = 0) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stdout + done.stderr
    return done


def test_wheel_contains_every_file_of_the_package(wheel: Path) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dart_train").rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert files <= set(zipfile.ZipFile(wheel).namelist())
    assert {Path(name).suffix for name in files} > {".py"}  # also the templates of the report


COMMANDS = """
import contextlib, io
import dart_train
from dart_train.cli.main import COMMANDS, main

print(dart_train.__file__)
for name in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        main([name, "--help"])
    assert "usage:" in shown.getvalue(), name
"""


def test_every_command_starts_from_the_wheel(python: Path, tmp_path: Path) -> None:
    location = run([str(python), "-c", COMMANDS], tmp_path).stdout
    assert Path(location.splitlines()[0]).is_relative_to(python.parents[1])
    assert "usage:" in run([str(python.parent / "dart-train"), "--help"], tmp_path).stdout


def test_base_command_of_the_wheel_needs_the_checkout(python: Path, tmp_path: Path) -> None:
    done = run([str(python), "-m", "dart_train", "base", "recipe.yaml"], tmp_path, expected=2)
    assert "data/tiny_base/train) is in the repository" in done.stderr


ATTACH = """
import sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText
from dart_train import DART, attach
from dart_train.models.processors import load_processor
from dart_train.models.prompts import build_inputs, user_message

model, processor = AutoModelForImageTextToText.from_pretrained(sys.argv[1]), load_processor(sys.argv[1])
inputs = build_inputs(processor, [[user_message("Is there a red circle?", [Image.new("RGB", (96, 96))])]])
with torch.no_grad(), attach(model, DART(keep=16)) as attached:
    model(**inputs)
print(attached.last.visual_after)
"""


def test_model_is_attached_from_the_wheel(python: Path, tmp_path: Path) -> None:
    done = run([str(python), "-c", ATTACH, str(ROOT / "data" / "tiny_base")], tmp_path)
    assert done.stdout.split() == ["(16,)"]


RECIPE = """
model: {{path: {model}, dtype: float32, attn_implementation: eager}}
reduction: {{method: dart, keep: 16}}
data:
  train: [{{path: shapes/train.json, images: shapes/images}}]
train: {{max_steps: 2, per_device_batch_size: 2, zero_stage: 0, precision: fp32, output_dir: run}}
"""


def test_model_is_trained_from_the_wheel(python: Path, tmp_path: Path) -> None:
    write(ShapesSettings(4, 0, 0), tmp_path / "shapes")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=ROOT / "data" / "tiny_base"))
    run([str(python), "-m", "dart_train", "train", "recipe.yaml"], tmp_path)
    assert (tmp_path / "run" / "checkpoint-2" / "complete.json").is_file()
