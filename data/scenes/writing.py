"""The set on disk: LLaVA JSON beside a folder of pictures, or parquet with the pictures inside."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.scenes.drawing import draw
from data.scenes.levels import LEVELS
from data.scenes.png import png
from data.scenes.questions import KINDS, questions
from data.scenes.rows import Row, rows_of, write_json, write_parquet
from data.scenes.scene import fingerprint, scene

VERSION = 1  # raise it with every change that alters a picture, a question or an answer
FORMATS = ("llava", "parquet")
SETTINGS = "shapes.json"

Summary = dict[str, Any]
Each = Callable[..., Iterable[Any]]  # `map`, or one like it that works in other processes


@dataclass(frozen=True)
class Settings:
    """All that decides what is written; two folders with the same settings hold the same set."""

    train: int
    validation: int
    test: int
    seed: int = 0
    difficulty: str = "tiny"
    format: str = "llava"
    group: bool = False
    kinds: tuple[str, ...] = tuple(KINDS)

    def __post_init__(self) -> None:
        wrong = [f"{name} = {count}: 0 or more expected" for name, count in self.sizes.items() if count < 0]
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            wrong.append(f"kinds {', '.join(unknown)}: choose from {', '.join(KINDS)}")
        if self.difficulty not in LEVELS:
            wrong.append(f"difficulty {self.difficulty!r}: choose one of {', '.join(LEVELS)}")
        if self.format not in FORMATS:
            wrong.append(f"format {self.format!r}: choose one of {', '.join(FORMATS)}")
        if not any(self.sizes.values()):
            wrong.append("no scenes at all: ask for some with --train, --validation or --test")
        if not self.kinds:
            wrong.append(f"no question kinds: choose from {', '.join(KINDS)}")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


@dataclass(frozen=True)
class Made:
    """One scene, ready to be written."""

    rows: list[Row]
    fingerprint: str
    picture: bytes  # SHA-256 of the PNG file


def _make(settings: Settings, folder: Path, split: str, index: int) -> Made:
    """Draw and ask; with the LLaVA layout the picture is written here, by the worker."""
    one = scene(settings.seed, split, index, settings.difficulty)
    path, content = f"{split}/{index:06d}.png", png(draw(one))
    if settings.format == "llava":
        (folder / "images" / path).write_bytes(content)
    image = path if settings.format == "llava" else {"bytes": content, "path": path}
    rows = rows_of(f"{split}-{index:06d}", image, questions(one, settings.kinds), settings.group)
    return Made(rows, fingerprint(one), hashlib.sha256(content).digest())


@contextmanager
def _in_order(workers: int) -> Iterator[Each]:
    """A `map` over so many processes. They are spawned: a fork of a process with threads can hang."""
    if workers == 1:
        yield map
        return
    with get_context("spawn").Pool(workers) as pool:
        yield partial(pool.imap, chunksize=16)


def write(settings: Settings, folder: Path, workers: int = 1) -> Summary:
    """Write the set and its summary, which is also returned; the same set, if finished, is left as it is."""
    wanted = json.loads(json.dumps({"version": VERSION, **asdict(settings)}))
    if (done := folder / SETTINGS).exists():
        summary = json.loads(done.read_text())
        if summary["settings"] == wanted:
            return summary
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds another or an unfinished set: choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    owners: dict[str, str] = {}
    with _in_order(workers) as each:
        splits = {split: _write_split(settings, folder, split, each, owners) for split in settings.sizes}
    summary = {"settings": wanted, "splits": splits}
    done.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _write_split(settings: Settings, folder: Path, split: str, each: Each, owners: dict[str, str]) -> Summary:
    size, tally = settings.sizes[split], _Tally(split, owners)
    if size and settings.format == "llava":
        (folder / "images" / split).mkdir(parents=True)
    if size:
        made = each(partial(_make, settings, folder, split), range(size))
        rows = (row for one in tqdm(made, total=size, desc=split, unit=" pictures") for row in tally.take(one))
        if settings.format == "llava":
            write_json(folder / f"{split}.json", rows)
        else:
            write_parquet(folder / f"{split}-00000-of-00001.parquet", rows, settings.group)
    return {
        "pictures": size,
        "questions": dict(sorted(tally.kinds.items())),
        "sha256": tally.content.hexdigest(),
    }


class _Tally:
    """What passes through on its way to the disk: questions by kind, all pictures, whose each scene is."""

    def __init__(self, split: str, owners: dict[str, str]) -> None:
        self.split, self.owners = split, owners
        self.kinds: Counter[str] = Counter()
        self.content = hashlib.sha256()

    def take(self, made: Made) -> list[Row]:
        owner = self.owners.setdefault(made.fingerprint, self.split)
        assert owner == self.split, f"a scene of {owner} is in {self.split} too"
        self.content.update(made.picture)
        for row in made.rows:
            self.kinds.update([row["kind"]] if isinstance(row["kind"], str) else row["kind"])
        return made.rows
