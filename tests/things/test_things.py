"""The set of named things: the same bytes from the same seed, true answers, and splits that share nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.things import (
    KINDS,
    SIZE,
    SPLITS,
    STYLES,
    ThingScene,
    ThingsSettings,
    describe,
    draw,
    fingerprint,
    questions,
    scene,
    things,
    write,
)
from data.things.__main__ import main
from data.things.fetch import make_sheet
from data.things.patches import BACKGROUND, patch_words
from data.things.sprites import SIDE, sprite

# Of the descriptions and questions of SCENES, version 1.
DIGEST = "7d956208966396d8dffec7fe447ad242e50e64dd828c773c3015a9508174e6f1"
SCENES = [scene(0, split, index) for split in SPLITS for index in range(25)]
PLACES = {
    "top left": (0, 0), "top": (0, 1), "top right": (0, 2),
    "left": (1, 0), "center": (1, 1), "right": (1, 2),
    "bottom left": (2, 0), "bottom": (2, 1), "bottom right": (2, 2),
}  # fmt: skip


def place(words: str) -> tuple[int, int]:
    if match := re.fullmatch(r"row (\d), column (\d)", words):
        return int(match[1]) - 1, int(match[2]) - 1
    return PLACES[words]


def grid(one: ThingScene) -> dict[tuple[int, int], tuple[str, str]]:
    """Row and column -> what is there and the text on it, read from the description, not from the scene."""
    found = {}
    names = sorted([*(thing.name for thing in things()), "note"], key=len, reverse=True)
    for line in describe(one).splitlines()[1:]:
        row, column, rest = line.split(" ", 2)
        name = next(name for name in names if rest == name or rest.startswith(name + " "))
        found[int(row), int(column)] = name, rest[len(name) :].strip()
    return found


def true_answer(one: ThingScene, kind: str, question: str) -> str:
    """The answer, found again in the description of the scene."""
    cells = grid(one)
    names = [name for name, _ in cells.values() if name != "note"]
    plurals = {thing.plural: thing for thing in things()}
    if kind == "what":
        at = re.fullmatch(r"What is (?:at the|in) (.+)\?", question)
        return f"the {cells[place(at[1])][0]}" if at else "?"
    if kind == "where":
        name = question.removeprefix("Where is the ").removesuffix("?")
        (at,) = (at for at, (found, _) in cells.items() if found == name)
        if one.columns == 3:
            return next(words for words, where in PLACES.items() if where == at)
        return f"row {at[0] + 1}, column {at[1] + 1}"
    if kind == "next_to":
        match = re.fullmatch(r"What is (left of|right of|above|below) the (.+)\?", question)
        assert match
        (at,) = (at for at, (found, _) in cells.items() if found == match[2])
        down, across = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}[match[1]]
        return f"the {cells[at[0] + down, at[1] + across][0]}"
    if kind == "exists":
        match = re.fullmatch(r"Is there an? (.+)\?", question)
        return "yes" if match and match[1] in names else "no"
    if kind in ("count", "category"):
        asked = question.removeprefix("How many ").removesuffix(" are there?")
        if kind == "count":
            return str(names.count(plurals[asked].name))
        category = {thing.name: thing.category for thing in things()}
        return str(sum(category[name] == asked.removesuffix("s") for name in names))
    if kind == "note":
        return next(text for name, text in cells.values() if name == "note")
    match = re.fullmatch(r"What does the (?:label on the )?(.+) (?:say|cost)\?", question)
    assert match
    return next(text for name, text in cells.values() if name == match[1])


def test_every_answer_is_true() -> None:
    asked = Counter[str]()
    for one in SCENES:
        for question in questions(one, each=4):
            asked[question.kind] += 1
            assert true_answer(one, question.kind, question.question) == question.answer, (describe(one), question)
    assert set(asked) == set(KINDS)
    assert min(asked.values()) > 20


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    settings = ThingsSettings(train=4, test=3, unseen=2, each=2)
    first, second = (write(settings, tmp_path / name) for name in ("one", "two"))
    files = [{p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("one", "two")]
    assert first == second
    assert files[0] == files[1]
    other = write(ThingsSettings(train=4, test=3, unseen=2, each=2, seed=1), tmp_path / "three")
    assert other["splits"]["train"]["sha256"] != first["splits"]["train"]["sha256"]


def test_scenes_have_not_changed() -> None:
    """Of version 1: descriptions and questions, which do not depend on the release of Pillow."""
    texts = [text for one in SCENES for text in (describe(one), *(f"{q.question} {q.answer}" for q in questions(one)))]
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest() == DIGEST


def test_splits_share_no_scene_and_no_unseen_thing() -> None:
    owners: dict[str, set[str]] = defaultdict(set)
    for one in SCENES:
        owners[fingerprint(one)].add(one.split)
        assert all(cell.thing.seen == (one.split != "unseen") for cell in one.things if cell.thing)
    assert all(len(splits) == 1 for splits in owners.values())
    assert 20 < sum(not thing.seen for thing in things()) < 40


def test_scenes_are_as_large_as_promised() -> None:
    counts = [len(one.cells) for one in SCENES]
    assert min(counts) >= 4
    assert max(counts) <= 12
    assert {one.columns for one in SCENES} == {3, 4}
    assert all(len({(cell.row, cell.column) for cell in one.cells}) == len(one.cells) for one in SCENES)


def test_yes_and_no_are_equally_frequent() -> None:
    answers = Counter(q.answer for one in SCENES for q in questions(one, ("exists",), each=2))
    assert answers["yes"] == answers["no"]


@pytest.mark.parametrize("style", STYLES)
def test_patches_are_named_where_pixels_differ(style: str) -> None:
    """Everything that is drawn on the background is in a patch with a name or at the edge of one."""
    one = next(one for one in SCENES if one.notes)
    empty = draw(ThingScene(**{**vars(one), "cells": ()}), style)
    changed = np.abs(np.asarray(draw(one, style), int) - np.asarray(empty, int)).sum(-1) > 30
    named = np.kron(patch_words(one, 14) != BACKGROUND, np.ones((14, 14), bool)).astype(bool)
    assert changed.any()
    assert (changed & ~named).sum() < 0.12 * changed.sum()
    assert {word for word in patch_words(one, 14).flat if word} >= {c.thing.name for c in one.things if c.thing}


def test_styles_draw_the_same_things_differently() -> None:
    one = SCENES[0]
    first, second = (np.asarray(draw(one, style), int) for style in STYLES)
    assert first.shape == second.shape == (SIZE, SIZE, 3)
    assert np.abs(first - second).mean() > 1
    for thing in things():
        drawings = [np.asarray(sprite(thing, style)) for style in STYLES]
        assert all(drawing.shape == (SIDE, SIDE, 4) and (drawing[..., 3] > 128).mean() > 0.1 for drawing in drawings)


def test_names_are_distinct() -> None:
    for names in ([thing.name for thing in things()], [thing.plural for thing in things()]):
        assert len(set(names)) == len(names)


def test_command_writes_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "set"), "--test", "2", "--group", "--style", "noto"]) == 0
    rows = json.loads((tmp_path / "set" / "test.json").read_text())
    assert len(rows) == 2
    assert rows[0]["conversations"][0]["value"].startswith("<image>\n")
    assert sum("<image>" in turn["value"] for turn in rows[0]["conversations"]) == 1
    assert Image.open(tmp_path / "set" / "images" / rows[0]["image"]).size == (SIZE, SIZE)
    assert "2 images" in capsys.readouterr().out
    assert main(["--out", str(tmp_path / "set"), "--test", "3"]) == 2
    assert "choose a new folder" in capsys.readouterr().err


def test_wrong_settings_are_reported_together() -> None:
    with pytest.raises(ValueError, match=r"kinds colour.*no scenes.*style 'oil'"):
        ThingsSettings(kinds=("colour",), style="oil")


def test_sheet_is_made_from_an_archive(tmp_path: Path) -> None:
    import tarfile

    wanted = things()[:3]
    (tmp_path / "package" / "assets").mkdir(parents=True)
    for thing in wanted[:2]:
        Image.new("RGBA", (100, 100), (thing.index, 0, 0, 255)).save(tmp_path / f"package/assets/{thing.code}.webp")
    with tarfile.open(tmp_path / "archive.tgz", "w:gz") as tar:
        tar.add(tmp_path / "package", "package")
    sheet = make_sheet("fluent", tmp_path / "archive.tgz", wanted[:2])
    assert sheet.getpixel((SIDE + 5, 5))[3] == 255
    with pytest.raises(ValueError, match=f"no image of: {wanted[2].name}"):
        make_sheet("fluent", tmp_path / "archive.tgz", wanted)
