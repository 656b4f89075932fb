"""What drawn question sets share: command line options, checks of settings, and the folder of a finished set."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

Summary = dict[str, Any]


def set_parser(description: str, splits: Iterable[str], kinds: Iterable[str], prog: str | None = None) -> Any:
    """A parser with the options that every set has."""
    made = argparse.ArgumentParser(prog=prog, description=description)
    made.add_argument("--out", type=Path, help="folder to write to; a finished set in it is not changed")
    for split in splits:
        made.add_argument(f"--{split}", type=int, default=0, metavar="N", help=f"images in {split}")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--group", action="store_true", help="one conversation per image instead of one row per question")
    made.add_argument("--kinds", type=_names, default=",".join(kinds), help="question kinds, separated by commas")
    return made


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def run_command(command: str, folder: Path | None, write: Callable[[Path], Summary]) -> int:
    """Writes the set and prints what was written. Returns the exit code: 2 where a setting is wrong."""
    try:
        if folder is None:
            raise ValueError("no folder given: set it with --out DIR")
        summary = write(folder)
    except ValueError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    for split, counts in summary["splits"].items():
        print(f"{split}: {counts['pictures']} images, {sum(counts['questions'].values())} questions")
    print(f"written to {folder}")
    return 0


def find_problems(sizes: Mapping[str, int], kinds: Sequence[str], known: Iterable[str]) -> list[str]:
    """Of the number of images of each split, and of the question kinds."""
    known = tuple(known)
    wrong = [f"{name} = {count}: 0 or more expected" for name, count in sizes.items() if count < 0]
    if unknown := [kind for kind in kinds if kind not in known]:
        wrong.append(f"kinds {', '.join(unknown)}: choose from {', '.join(known)}")
    if not any(sizes.values()):
        *most, last = (f"--{name}" for name in sizes)
        wrong.append(f"no scenes: set {', '.join(most)} or {last}")
    if not kinds:
        wrong.append(f"no question kinds: choose from {', '.join(known)}")
    return wrong


def write_set(folder: Path, file: str, version: int, settings: Any, write_splits: Callable[[], Summary]) -> Summary:
    """Write the set and its summary (`file`), which is also returned. A folder with the same finished set is not
    changed. settings: a dataclass."""
    wanted = json.loads(json.dumps({"version": version, **asdict(settings)}))
    if (done := folder / file).exists():
        summary: Summary = json.loads(done.read_text())
        if summary["settings"] == wanted:
            return summary
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and contains another or an unfinished set: choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"settings": wanted, "splits": write_splits()}
    done.write_text(json.dumps(summary, indent=1) + "\n")
    return summary
