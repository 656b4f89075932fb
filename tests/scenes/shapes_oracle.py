"""An independent implementation of the answers, from the wording of a question and the description of a scene."""

from __future__ import annotations

import re
from typing import Any

LOOKS = r"(\w+) (\w+)"
TEXT = r"([0-9]+|[A-Z]+)"
AWAY = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


def only(found: list[dict[str, Any]]) -> dict[str, Any]:
    assert len(found) == 1, f"{len(found)} items match"
    return found[0]


def named(things: list[dict[str, Any]], word: str) -> list[dict[str, Any]]:
    """The items of a colour, or of a shape in singular or plural; `red shapes` too."""
    word = word.removesuffix(" shapes")
    return [t for t in things if word in (t["colour"], t["what"], t["what"] + "s", t["what"] + "es")]


def place(row: int, column: int, grid: int) -> str:
    parts = 3 if grid % 3 == 0 else 2
    down, right = row // (grid // parts), column // (grid // parts)
    if (parts, down, right) == (3, 1, 1):
        return "centre"
    sides = ("left", "middle", "right") if parts == 3 else ("left", "right")
    return f"{(('top', 'middle', 'bottom') if parts == 3 else ('top', 'bottom'))[down]} {sides[right]}"


def described(text: str) -> list[dict[str, Any]]:
    lines = [line.split() for line in text.splitlines()]
    return [
        {"row": int(row), "column": int(column), "colour": colour, "what": what, "text": "".join(rest)}
        for row, column, colour, what, *rest in lines
    ]


def worked_out(question: str, description: str, grid: int) -> str:
    things = described(description)
    forms = [t for t in things if t["what"] != "plate"]
    plates = [t for t in things if t["what"] == "plate"]

    def is_like(pattern: str) -> tuple[str, ...] | None:
        return match.groups() if (match := re.fullmatch(pattern, question)) else None

    def looks(colour: str, what: str) -> list[dict[str, Any]]:
        return [t for t in forms if (t["colour"], t["what"]) == (colour, what)]

    def adjacent(side: str, text: str) -> dict[str, Any]:
        plate, (down, right) = only([t for t in plates if t["text"] == text]), AWAY[side]
        spot = (plate["row"] + down, plate["column"] + right)
        return only([t for t in forms if (t["row"], t["column"]) == spot])

    if found := is_like(rf"What colour is the plate with {TEXT}\?"):
        return only([t for t in plates if t["text"] == found[0]])["colour"]
    if found := is_like(rf"What colour is the shape directly (.+) {TEXT}\?"):
        return adjacent(*found)["colour"]
    if found := is_like(rf"Which shape is directly (.+) {TEXT}\?"):
        return adjacent(*found)["what"]
    if found := is_like(r"What colour is the (\w+)\?"):
        return only([t for t in forms if t["what"] == found[0]])["colour"]
    if found := is_like(r"Which shape is (\w+)\?"):
        return only([t for t in forms if t["colour"] == found[0]])["what"]
    if found := is_like(r"How many (.+) are there\?"):
        return str(len(named(forms, found[0])))
    if found := is_like(rf"Is there a {LOOKS}\?"):
        return "yes" if looks(*found) else "no"
    if found := is_like(r"Are there more (.+) than (.+)\?"):
        one, other = (len(named(forms, word)) for word in found)
        assert one != other
        return "yes" if one > other else "no"
    if found := is_like(rf"Is the {LOOKS} (left of|right of|above|below) the {LOOKS}\?"):
        first, second = only(looks(*found[:2])), only(looks(*found[3:]))
        down, right = AWAY[found[2]]
        gap = (first["row"] - second["row"]) * down + (first["column"] - second["column"]) * right
        assert gap != 0
        return "yes" if gap > 0 else "no"
    if found := is_like(rf"Where is the {LOOKS}\?"):
        thing = only(looks(*found))
        return place(thing["row"], thing["column"], grid)
    if found := is_like(r"What is written on the (\w+) plate\?"):
        return only([t for t in plates if t["colour"] == found[0]])["text"]
    found = is_like(r"What (number|word) is written(?: in the (.+))?\?")
    assert found, f"unknown question: {question}"
    sort = [t for t in plates if t["text"].isdigit() == (found[0] == "number")]
    return only([t for t in sort if found[1] in (None, place(t["row"], t["column"], grid))])["text"]
