"""Questions about a scene, each with one short answer that follows from the scene alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import permutations

from data.scenes.rng import PortableRandom
from data.scenes.scene import Item, Scene, plate_extent
from data.scenes.templates import SIDES, YES_NO, ask, place_of, plural


@dataclass(frozen=True)
class Question:
    kind: str
    question: str
    answer: str


QuestionAnswer = tuple[str, str]  # a question and its answer


def _appearance(item: Item) -> tuple[str, str]:
    return item.colour, item.what


def _unique(items: Iterable[Item], by: Callable[[Item], Hashable]) -> list[Item]:
    """The items whose value of `by` no other item has."""
    items = list(items)
    counts = Counter(map(by, items))
    return [item for item in items if counts[by(item)] == 1]


def _colour(scene: Scene, rng: PortableRandom) -> QuestionAnswer | None:
    if not (items := _unique(scene.shapes, lambda item: item.what)):
        return None
    item = rng.choice(items)
    return ask("colour", shape=item.what), item.colour


def _shape(scene: Scene, rng: PortableRandom) -> QuestionAnswer | None:
    if not (items := _unique(scene.shapes, lambda item: item.colour)):
        return None
    item = rng.choice(items)
    return ask("shape", colour=item.colour), item.what


def _count(scene: Scene, rng: PortableRandom) -> QuestionAnswer:
    """0 is as frequent as every other number: the focus of a scene occurs 1 to `most` times, equally often."""
    looks = {word for item in scene.shapes for word in _appearance(item)}
    names = (*scene.level.colour_names, *scene.level.shape_names)
    absent = [name for name in names if name not in looks]
    name = rng.choice(absent) if rng.below(scene.level.most + 1) == 0 else scene.focus
    answer = str(sum(name in _appearance(item) for item in scene.shapes))
    if name in scene.level.colour_names:
        return ask("count_colour", colour=name), answer
    return ask("count_shape", shapes=plural(name)), answer


def _exists(scene: Scene, rng: PortableRandom) -> QuestionAnswer | None:
    """If the answer is no, the colour and the shape both occur, but not together."""
    there = [_appearance(item) for item in scene.shapes]
    mixed = sorted({(colour, shape) for colour, _ in there for _, shape in there} - set(there))
    if not mixed:
        return None
    answer = rng.coin()
    colour, shape = rng.choice(there if answer else mixed)
    return ask("exists", colour=colour, shape=shape), YES_NO[answer]


def _is_on_side(side: str, item: Item, other: Item) -> bool:
    down, right = SIDES[side]
    return (item.row - other.row) * down + (item.column - other.column) * right > 0


def _relation(scene: Scene, rng: PortableRandom) -> QuestionAnswer | None:
    side, answer = rng.choice(tuple(SIDES)), rng.coin()
    items = _unique(scene.shapes, _appearance)
    pairs = [pair for pair in permutations(items, 2) if _is_on_side(side, *pair)]
    if not pairs:
        return None
    first, second = rng.choice(pairs) if answer else reversed(rng.choice(pairs))
    slots = {"colour": first.colour, "shape": first.what, "colour2": second.colour, "shape2": second.what}
    return ask("relation", side=side, **slots), YES_NO[answer]


def _position(scene: Scene, rng: PortableRandom) -> QuestionAnswer | None:
    if not (items := _unique(scene.shapes, _appearance)):
        return None
    item = rng.choice(items)
    return ask("position", colour=item.colour, shape=item.what), place_of(scene.level, item)


def _read(kind: str, plates: list[Item], scene: Scene, rng: PortableRandom) -> QuestionAnswer | None:
    """A plate that is the only one of its type needs no place in the question; one of several does."""
    if len(plates) == 1:
        return ask(kind), plates[0].text
    if not (items := _unique(plates, lambda item: place_of(scene.level, item))):
        return None
    item = rng.choice(items)
    return ask(f"{kind}_in", place=place_of(scene.level, item)), item.text


def _number(scene: Scene, rng: PortableRandom) -> QuestionAnswer | None:
    return _read("number", [plate for plate in scene.plates if plate.text.isdigit()], scene, rng)


def _word(scene: Scene, rng: PortableRandom) -> QuestionAnswer | None:
    return _read("word", [plate for plate in scene.plates if plate.text.isalpha()], scene, rng)


def _plate(scene: Scene, rng: PortableRandom) -> QuestionAnswer | None:
    if not (items := _unique(scene.plates, lambda item: item.colour)):
        return None
    item = rng.choice(items)
    return ask("plate", colour=item.colour), item.text


def _plate_colour(scene: Scene, rng: PortableRandom) -> QuestionAnswer:
    item = rng.choice(scene.plates)
    return ask("holder", text=item.text), item.colour


def _span(scene: Scene, item: Item, axis: int) -> range:
    """The pixels of an item, horizontally (0) or vertically (1)."""
    extent = plate_extent(scene.level, item.text, item.size)[axis] if item.text else item.size
    start = (item.x, item.y)[axis]
    return range(start, start + extent)


def _overlaps(scene: Scene, side: str, item: Item, plate: Item) -> bool:
    """Whether the item, in the cell on that side of the plate, overlaps it in the other direction, so that nothing else
    is as near."""
    across = 0 if SIDES[side][0] else 1
    one, other = _span(scene, item, across), _span(scene, plate, across)
    return one.start < other.stop and other.start < one.stop


def _adjacent(scene: Scene, rng: PortableRandom) -> QuestionAnswer | None:
    plates = {(plate.row, plate.column): plate for plate in scene.plates}
    found = [
        (side, item, plate)
        for side, (down, right) in SIDES.items()
        for item in scene.shapes
        if (plate := plates.get((item.row - down, item.column - right))) and _overlaps(scene, side, item, plate)
    ]
    if not found:
        return None
    side, item, plate = rng.choice(found)
    if rng.coin():
        return ask("adjacent_colour", side=side, text=plate.text), item.colour
    return ask("adjacent_shape", side=side, text=plate.text), item.what


def _compare(scene: Scene, rng: PortableRandom) -> QuestionAnswer | None:
    by_colour, answer = rng.coin(), rng.coin()
    often = Counter(item.colour if by_colour else item.what for item in scene.shapes)
    pairs = [(more, less) for more, less in permutations(sorted(often), 2) if often[more] > often[less]]
    if not pairs:
        return None
    first, second = rng.choice(pairs) if answer else reversed(rng.choice(pairs))
    if by_colour:
        return ask("compare_colour", colour=first, colour2=second), YES_NO[answer]
    return ask("compare_shape", shapes=plural(first), shapes2=plural(second)), YES_NO[answer]


KINDS: dict[str, Callable[[Scene, PortableRandom], QuestionAnswer | None]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "exists": _exists,
    "compare": _compare,
    "relation": _relation,
    "position": _position,
    "number": _number,
    "word": _word,
    "plate": _plate,
    "holder": _plate_colour,
    "beside": _adjacent,
}


def questions(scene: Scene, kinds: Iterable[str] = tuple(KINDS)) -> list[Question]:
    """At most one question of each kind, for the kinds that the scene allows, in a random order of its own."""
    seed = f"{scene.seed}-{scene.split}-{scene.index}-{scene.difficulty}"
    chosen = []
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"question kind {kind!r} is unknown: choose from {', '.join(KINDS)}")
        if found := KINDS[kind](scene, PortableRandom(f"{seed}-{kind}")):
            chosen.append(Question(kind, *found))
    return PortableRandom(f"{seed}-order").sample(chosen, len(chosen))
