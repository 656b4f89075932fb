"""The set on disk: LLaVA JSON files and a folder of images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data.scenes.question_set import Summary, find_problems, write_set
from data.scenes.rows import Row, kinds_of, rows_of, write_json
from data.things.catalogue import STYLES
from data.things.drawing import draw
from data.things.questions import KINDS, questions
from data.things.scene import SPLITS, scene

VERSION = 1  # increased with every change of pixels, questions or answers
SETTINGS = "things.json"


@dataclass(frozen=True)
class ThingsSettings:
    """The settings that determine the set; two folders with the same settings contain the same set."""

    train: int = 0
    validation: int = 0
    test: int = 0
    unseen: int = 0
    seed: int = 0
    style: str = STYLES[0]
    each: int = 1
    group: bool = False
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        wrong = find_problems(self.sizes, self.kinds, KINDS)
        if self.style not in STYLES:
            wrong.append(f"style {self.style!r}: choose one of {', '.join(STYLES)}")
        if self.each < 1:
            wrong.append(f"each = {self.each}: 1 or more expected")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def sizes(self) -> dict[str, int]:
        return {split: getattr(self, split) for split in SPLITS}


def write(settings: ThingsSettings, folder: Path) -> Summary:
    """Write the set and its summary, which is also returned. A folder with the same finished set is not changed."""

    def write_splits() -> Summary:
        return {split: _write_split(settings, folder, split) for split, size in settings.sizes.items() if size}

    return write_set(folder, SETTINGS, VERSION, settings, write_splits)


def _write_split(settings: ThingsSettings, folder: Path, split: str) -> Summary:
    size, kinds, content = settings.sizes[split], Counter[str](), hashlib.sha256()
    (folder / "images" / split).mkdir(parents=True)

    def rows() -> Iterator[Row]:
        for index in tqdm(range(size), desc=split, unit=" images"):
            one = scene(settings.seed, split, index)
            drawn, path = draw(one, settings.style), f"{split}/{index:06d}.png"
            drawn.save(folder / "images" / path)
            content.update(drawn.tobytes())
            asked = questions(one, settings.kinds, settings.each)
            for row in rows_of(f"{split}-{index:06d}", path, asked, settings.group, numbered=True):
                kinds.update(kinds_of(row))
                yield row

    write_json(folder / f"{split}.json", rows())
    return {"pictures": size, "questions": dict(sorted(kinds.items())), "sha256": content.hexdigest()}
