"""Keys and passwords of the environment are in no file and no output of a training or a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_train.cli.training import train as main
from dart_train.config import load_recipe
from dart_train.evaluation.comparison import compare
from tests.evaluation import scene
from tests.fixtures.run_scene import make_recipe

KEY = "0123456789abcdef0123456789abcdef01234567"
NAMES = ("HF_TOKEN", "MY_PASSWORD", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, f"{name.lower()}-do-not-print-{KEY}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")


def assert_no_secret(folder: Path, output: str, least: int) -> None:
    """Looks in every file, those of W&B included, and in the output."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > least and any("offline-run" in str(file) for file in files)
    for name, content in [("the output", output.encode()), *((str(file), file.read_bytes()) for file in files)]:
        assert KEY.encode() not in content and b"do-not-print" not in content, name
        assert b"AWS_SECRET_ACCESS_KEY" not in content, f"{name}: the environment"


def test_training_writes_no_secret(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = ["train.max_steps=2", "train.per_device_batch_size=2", "train.save_steps=2"]
    assert main([str(make_recipe(tmp_path)), *more, "log.report_to=[wandb, tensorboard]"]) == 0
    assert_no_secret(tmp_path / "run", "".join(capfd.readouterr()), 20)
    assert list((tmp_path / "run" / "checkpoint-2").iterdir())


def test_comparison_and_report_contain_no_secret(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = scene.make(tmp_path)
    assert compare(load_recipe(recipe, ["compare.budgets=[8]", "compare.methods=[dart]", "log.report_to=[wandb]"]))
    assert_no_secret(tmp_path / "out", "".join(capfd.readouterr()), 5)
    assert (tmp_path / "out" / "report.html").is_file()
