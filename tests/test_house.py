"""The architecture, read from the imports: who may know whom, and how long a file may grow."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dart_train"

# From the ground up; a room may import its own floor and those below.
FLOORS = (
    ("budget", "layout", "pools", "reducers", "reduction"),
    ("attach", "families", "pixels", "processors"),
    ("checkpoint", "data", "loss", "measure", "recipe", "schedule"),
    ("base", "bench", "chat", "check", "compare", "env", "export", "lmms_eval", "plan", "report", "show", "train"),
    ("__init__", "__main__"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
GROUND_LIBRARIES = {"torch"}
# Libraries that few may know: the rooms and files that do.
ONLY_IN = {
    "deepspeed": {"attach/norm.py", "checkpoint", "train"},
    "peft": {"checkpoint", "export", "train"},
    "trl": set[str](),
    "wandb": {"compare", "report", "train"},
}
LONGEST = 16_000
OURS = ("dart_train", "tests", "launch", "recipes", "data", ".ci")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor_of(room: str) -> int:
    """A room that has none yet is taken for the top one."""
    return FLOOR_OF.get(room, len(FLOORS) - 1)


def imported(file: Path) -> Iterator[str]:
    """Absolute dotted names of all that the file imports, also inside functions."""
    package = ["dart_train", *file.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def rooms_used(file: Path) -> set[str]:
    """Rooms of the package that the file imports; a name taken from the front door counts as `__init__`."""
    names = [name.split(".") for name in imported(file) if name.split(".")[0] == "dart_train"]
    return {name[1] if len(name) > 1 and name[1] in FLOOR_OF else "__init__" for name in names}


def libraries_used(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(file)} - set(sys.stdlib_module_names) - {"dart_train"}


def test_every_room_has_a_floor() -> None:
    strangers = {room_of(file) for file in modules()} - FLOOR_OF.keys()
    assert not strangers, f"give these rooms a floor in FLOORS: {sorted(strangers)}"


def test_imports_only_go_down() -> None:
    upward = [
        f"{file.relative_to(ROOT)} ({room_of(file)}) imports {used}"
        for file in modules()
        for used in rooms_used(file)
        if floor_of(used) > floor_of(room_of(file))
    ]
    assert not upward, "\n".join(upward)


def test_the_ground_floor_is_pure_torch() -> None:
    impure = [
        f"{file.relative_to(ROOT)} imports {library}"
        for file in modules()
        if floor_of(room_of(file)) == 0
        for library in libraries_used(file) - GROUND_LIBRARIES
    ]
    assert not impure, "\n".join(impure)


@pytest.mark.parametrize("library", ONLY_IN)
def test_few_rooms_know(library: str) -> None:
    knowing = [file for file in modules() if library in libraries_used(file)]
    names = {str(file.relative_to(PACKAGE)): room_of(file) for file in knowing}
    assert not [name for name, room in names.items() if not {name, room} & ONLY_IN[library]]


def our_files() -> list[Path]:
    top = [file for file in ROOT.iterdir() if file.is_file() and file.suffix in {".md", ".toml"}]
    below = [file for name in OURS for file in (ROOT / name).rglob("*") if file.is_file()]
    return [f for f in [*top, *below] if "__pycache__" not in f.parts and f.suffix != ".pyc"]


def test_no_file_outgrows_one_idea() -> None:
    long = [
        f"{f.relative_to(ROOT)}: {f.stat().st_size}"
        for f in our_files()
        if f.suffix == ".py" and f.stat().st_size > LONGEST
    ]
    assert not long, "\n".join(long)


# Written with brackets, so that this file does not name them itself.
NOT_HERE = re.compile(
    r"/[w]ork/|/[r]oot/|/[h]ome/[a-z]|/[t]mp/[a-z]|py[p]i\.org|python[h]osted|[d]ownload\.pytorch"
)


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for file in our_files():
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # a picture or another binary file
        found += [
            f"{file.relative_to(ROOT)}:{n}: {line}"
            for n, line in enumerate(lines, 1)
            if NOT_HERE.search(line)
        ]
    assert not found, "\n".join(found)


def test_the_reader_of_imports_sees_each_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "rows.py"
    file.write_text(
        "import torch.nn as nn\nfrom .. import train\nfrom ..export import x\nfrom . import other\n"
        "def f():\n    from dart_train.reducers.base import Reducer\nfrom dart_train import DART\n"
    )
    assert rooms_used(file) == {"train", "export", "data", "reducers", "__init__"}
    assert libraries_used(file) == {"torch"}
