"""The set on disk: LLaVA JSON files and a folder of images."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.scenes.questions import Question
from data.scenes.rows import Row, write_json
from data.things.catalogue import STYLES
from data.things.drawing import draw
from data.things.questions import KINDS, questions
from data.things.scene import ThingScene, scene

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
        wrong = [f"{name} = {count}: 0 or more expected" for name, count in self.sizes.items() if count < 0]
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            wrong.append(f"kinds {', '.join(unknown)}: choose from {', '.join(KINDS)}")
        if self.style not in STYLES:
            wrong.append(f"style {self.style!r}: choose one of {', '.join(STYLES)}")
        if self.each < 1:
            wrong.append(f"each = {self.each}: 1 or more expected")
        if not any(self.sizes.values()):
            wrong.append("no scenes: set --train, --validation, --test or --unseen")
        if not self.kinds:
            wrong.append(f"no question kinds: choose from {', '.join(KINDS)}")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": self.train, "validation": self.validation, "test": self.test, "unseen": self.unseen}


def write(settings: ThingsSettings, folder: Path) -> dict[str, Any]:
    """Write the set and its summary, which is also returned. A folder with the same finished set is not changed."""
    wanted = json.loads(json.dumps({"version": VERSION, **asdict(settings)}))
    if (done := folder / SETTINGS).exists():
        summary: dict[str, Any] = json.loads(done.read_text())
        if summary["settings"] == wanted:
            return summary
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and contains another or an unfinished set: choose a new folder")
    splits = {split: _write_split(settings, folder, split) for split, size in settings.sizes.items() if size}
    summary = {"settings": wanted, "splits": splits}
    done.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _write_split(settings: ThingsSettings, folder: Path, split: str) -> dict[str, Any]:
    size, kinds, content = settings.sizes[split], Counter[str](), hashlib.sha256()
    (folder / "images" / split).mkdir(parents=True)

    def rows() -> Iterator[Row]:
        for index in tqdm(range(size), desc=split, unit=" images"):
            one = scene(settings.seed, split, index)
            drawn, path = draw(one, settings.style), f"{split}/{index:06d}.png"
            drawn.save(folder / "images" / path)
            content.update(drawn.tobytes())
            for row in rows_of(one, path, settings):
                kinds.update([row["kind"]] if isinstance(row["kind"], str) else row["kind"])
                yield row

    write_json(folder / f"{split}.json", rows())
    return {"pictures": size, "questions": dict(sorted(kinds.items())), "sha256": content.hexdigest()}


def rows_of(one: ThingScene, image: str, settings: ThingsSettings) -> list[Row]:
    """One row per question, or with `group` one conversation about the image."""
    name, asked = f"{one.split}-{one.index:06d}", questions(one, settings.kinds, settings.each)
    if settings.group:
        kinds = [question.kind for question in asked]
        return [{"id": name, "image": image, "conversations": _turns(asked), "kind": kinds}] if asked else []
    return [
        {"id": f"{name}-{number}-{one.kind}", "image": image, "conversations": _turns([one]), "kind": one.kind}
        for number, one in enumerate(asked)
    ]


def _turns(asked: list[Question]) -> list[dict[str, str]]:
    turns = []
    for place, one in enumerate(asked):
        mark = "" if place else "<image>\n"
        turns += [{"from": "human", "value": mark + one.question}, {"from": "gpt", "value": one.answer}]
    return turns
