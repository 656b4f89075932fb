"""The set on disk: LLaVA JSON and a folder of images, or parquet that contains the images."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.scenes.difficulty import LEVELS
from data.scenes.drawing import draw
from data.scenes.question_set import Summary, find_problems, write_set
from data.scenes.questions import KINDS, questions
from data.scenes.rows import Row, kinds_of, rows_of, write_json, write_parquet
from data.scenes.scene import fingerprint, scene

VERSION = 1  # increased with every change of pixels, questions or answers
FORMATS = ("llava", "parquet")
SPLITS = ("train", "validation", "test")
SETTINGS = "shapes.json"

Each = Callable[..., Iterable[Any]]  # `map`, or one like it that works in other processes


@dataclass(frozen=True)
class ShapesSettings:
    """The settings that determine the set; two folders with the same settings contain the same set."""

    train: int
    validation: int
    test: int
    seed: int = 0
    difficulty: str = "tiny"
    format: str = "llava"
    group: bool = False
    kinds: tuple[str, ...] = tuple(KINDS)

    def __post_init__(self) -> None:
        wrong = find_problems(self.sizes, self.kinds, KINDS)
        if self.difficulty not in LEVELS:
            wrong.append(f"difficulty {self.difficulty!r}: choose one of {', '.join(LEVELS)}")
        if self.format not in FORMATS:
            wrong.append(f"format {self.format!r}: choose one of {', '.join(FORMATS)}")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def sizes(self) -> dict[str, int]:
        return {split: getattr(self, split) for split in SPLITS}


@dataclass(frozen=True)
class RenderedScene:
    """One scene, ready to be written."""

    rows: list[Row]
    fingerprint: str
    pixels: bytes  # SHA-256 of the RGB pixels


def _render(settings: ShapesSettings, folder: Path, split: str, index: int) -> RenderedScene:
    """Draw the image and write the questions; in the LLaVA format the worker saves the image here."""
    one = scene(settings.seed, split, index, settings.difficulty)
    path, drawn = f"{split}/{index:06d}.png", draw(one)
    image: Any = path
    if settings.format == "llava":
        drawn.save(folder / "images" / path)
    else:
        content = io.BytesIO()
        drawn.save(content, "PNG")
        image = {"bytes": content.getvalue(), "path": path}
    rows = rows_of(f"{split}-{index:06d}", image, questions(one, settings.kinds), settings.group)
    return RenderedScene(rows, fingerprint(one), hashlib.sha256(drawn.tobytes()).digest())


@contextmanager
def _in_order(workers: int) -> Iterator[Each]:
    """A `map` over `workers` processes. They are spawned: a forked process with threads can hang."""
    if workers == 1:
        yield map
        return
    with get_context("spawn").Pool(workers) as pool:
        yield partial(pool.imap, chunksize=16)


def write(settings: ShapesSettings, folder: Path, workers: int = 1) -> Summary:
    """Write the set and its summary, which is also returned. A folder with the same finished set is not changed."""

    def write_splits() -> Summary:
        owners: dict[str, str] = {}
        with _in_order(workers) as each:
            return {split: _write_split(settings, folder, split, each, owners) for split in settings.sizes}

    return write_set(folder, SETTINGS, VERSION, settings, write_splits)


def _write_split(settings: ShapesSettings, folder: Path, split: str, each: Each, owners: dict[str, str]) -> Summary:
    size, tally = settings.sizes[split], _SplitSummary(split, owners)
    if size and settings.format == "llava":
        (folder / "images" / split).mkdir(parents=True)
    if size:
        made = each(partial(_render, settings, folder, split), range(size))
        rows = (row for one in tqdm(made, total=size, desc=split, unit=" images") for row in tally.take(one))
        if settings.format == "llava":
            write_json(folder / f"{split}.json", rows)
        else:
            write_parquet(folder / f"{split}-00000-of-00001.parquet", rows, settings.group)
    return {
        "pictures": size,
        "questions": dict(sorted(tally.kinds.items())),
        "sha256": tally.content.hexdigest(),
    }


class _SplitSummary:
    """Collected while rows are written: questions by kind, the digest of all pixels, and the split of each scene."""

    def __init__(self, split: str, owners: dict[str, str]) -> None:
        self.split, self.owners = split, owners
        self.kinds: Counter[str] = Counter()
        self.content = hashlib.sha256()

    def take(self, made: RenderedScene) -> list[Row]:
        owner = self.owners.setdefault(made.fingerprint, self.split)
        assert owner == self.split, f"a scene of {owner} is in {self.split} too"
        self.content.update(made.pixels)
        for row in made.rows:
            self.kinds.update(kinds_of(row))
        return made.rows
