"""What a fresh process imports: `import dart_train` and a misspelt key of a recipe do not wait for torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "datasets", "pandas", "deepspeed", "matplotlib", "wandb", "peft")


def imported(code: str) -> list[str]:
    """Which of HEAVY a new process has imported after `code`."""
    listing = f"\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + listing], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_importing_the_package_imports_no_library() -> None:
    assert imported("import dart_train") == []


def test_attach_and_dart_import_torch_and_transformers_alone() -> None:
    assert imported("from dart_train import DART, attach") == ["torch", "transformers"]


@pytest.mark.parametrize("command", ["train", "compare", "plan", "data check"])
def test_misspelt_key_is_reported_without_torch(tmp_path: Path, command: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {path: x}\ndata: {train: [{path: rows}]}\ntrain: {learning_rat: 1}\n")
    arguments = [*command.split(), str(recipe)]
    assert imported(f"from dart_train.cli.main import main\nassert main({arguments!r}) == 2") == []


@pytest.mark.parametrize("command", ["train", "compare", "plan", "data", "export", "chat", "show", "check", "env"])
def test_help_is_printed_without_torch(command: str) -> None:
    code = (
        f"from dart_train.cli.main import main\ntry:\n    main([{command!r}, '--help'])\nexcept SystemExit:\n    pass"
    )
    assert imported(code) == []
