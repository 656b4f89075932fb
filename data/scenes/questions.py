"""Questions about a scene, each with one short answer that the scene alone decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import permutations

from data.scenes.dice import Dice
from data.scenes.phrases import SIDES, YES_NO, ask, place_of, plural
from data.scenes.scene import Item, Scene, plate_extent


@dataclass(frozen=True)
class Question:
    kind: str
    question: str
    answer: str


Asked = tuple[str, str]  # a question and its answer


def _look(item: Item) -> tuple[str, str]:
    return item.colour, item.what


def _alone(items: Iterable[Item], by: Callable[[Item], Hashable]) -> list[Item]:
    """The items that share what `by` says of them with no other."""
    items = list(items)
    often = Counter(map(by, items))
    return [item for item in items if often[by(item)] == 1]


def _colour(scene: Scene, dice: Dice) -> Asked | None:
    if not (items := _alone(scene.shapes, lambda item: item.what)):
        return None
    item = dice.pick(items)
    return ask("colour", shape=item.what), item.colour


def _shape(scene: Scene, dice: Dice) -> Asked | None:
    if not (items := _alone(scene.shapes, lambda item: item.colour)):
        return None
    item = dice.pick(items)
    return ask("shape", colour=item.colour), item.what


def _count(scene: Scene, dice: Dice) -> Asked:
    """0 as often as each other number: the scene has its focus 1 to `most` times, equally often."""
    looks = {word for item in scene.shapes for word in _look(item)}
    names = (*scene.level.colour_names, *scene.level.shape_names)
    absent = [name for name in names if name not in looks]
    name = dice.pick(absent) if dice.below(scene.level.most + 1) == 0 else scene.focus
    answer = str(sum(name in _look(item) for item in scene.shapes))
    if name in scene.level.colour_names:
        return ask("count_colour", colour=name), answer
    return ask("count_shape", shapes=plural(name)), answer


def _exists(scene: Scene, dice: Dice) -> Asked | None:
    """Where the answer is no, the colour and the shape are both there, but not together."""
    there = [_look(item) for item in scene.shapes]
    mixed = sorted({(colour, shape) for colour, _ in there for _, shape in there} - set(there))
    if not mixed:
        return None
    answer = dice.coin()
    colour, shape = dice.pick(there if answer else mixed)
    return ask("exists", colour=colour, shape=shape), YES_NO[answer]


def _lies(side: str, item: Item, other: Item) -> bool:
    down, right = SIDES[side]
    return (item.row - other.row) * down + (item.column - other.column) * right > 0


def _relation(scene: Scene, dice: Dice) -> Asked | None:
    side, answer = dice.pick(tuple(SIDES)), dice.coin()
    items = _alone(scene.shapes, _look)
    pairs = [pair for pair in permutations(items, 2) if _lies(side, *pair)]
    if not pairs:
        return None
    first, second = dice.pick(pairs) if answer else reversed(dice.pick(pairs))
    slots = {"colour": first.colour, "shape": first.what, "colour2": second.colour, "shape2": second.what}
    return ask("relation", side=side, **slots), YES_NO[answer]


def _position(scene: Scene, dice: Dice) -> Asked | None:
    if not (items := _alone(scene.shapes, _look)):
        return None
    item = dice.pick(items)
    return ask("position", colour=item.colour, shape=item.what), place_of(scene.level, item)


def _read(kind: str, plates: list[Item], scene: Scene, dice: Dice) -> Asked | None:
    """The only plate of its sort is asked for outright, one among several by its place."""
    if len(plates) == 1:
        return ask(kind), plates[0].text
    if not (items := _alone(plates, lambda item: place_of(scene.level, item))):
        return None
    item = dice.pick(items)
    return ask(f"{kind}_in", place=place_of(scene.level, item)), item.text


def _number(scene: Scene, dice: Dice) -> Asked | None:
    return _read("number", [plate for plate in scene.plates if plate.text.isdigit()], scene, dice)


def _word(scene: Scene, dice: Dice) -> Asked | None:
    return _read("word", [plate for plate in scene.plates if plate.text.isalpha()], scene, dice)


def _plate(scene: Scene, dice: Dice) -> Asked | None:
    if not (items := _alone(scene.plates, lambda item: item.colour)):
        return None
    item = dice.pick(items)
    return ask("plate", colour=item.colour), item.text


def _holder(scene: Scene, dice: Dice) -> Asked:
    item = dice.pick(scene.plates)
    return ask("holder", text=item.text), item.colour


def _span(scene: Scene, item: Item, axis: int) -> range:
    """The pixels that an item takes up, across (0) or down (1)."""
    extent = plate_extent(scene.level, item.text, item.size)[axis] if item.text else item.size
    start = (item.x, item.y)[axis]
    return range(start, start + extent)


def _level_with(scene: Scene, side: str, item: Item, plate: Item) -> bool:
    """In the cell on that side of the plate, and level with it, so that nothing else is as near."""
    across = 0 if SIDES[side][0] else 1
    one, other = _span(scene, item, across), _span(scene, plate, across)
    return one.start < other.stop and other.start < one.stop


def _beside(scene: Scene, dice: Dice) -> Asked | None:
    plates = {(plate.row, plate.column): plate for plate in scene.plates}
    found = [
        (side, item, plate)
        for side, (down, right) in SIDES.items()
        for item in scene.shapes
        if (plate := plates.get((item.row - down, item.column - right))) and _level_with(scene, side, item, plate)
    ]
    if not found:
        return None
    side, item, plate = dice.pick(found)
    if dice.coin():
        return ask("beside_colour", side=side, text=plate.text), item.colour
    return ask("beside_shape", side=side, text=plate.text), item.what


def _compare(scene: Scene, dice: Dice) -> Asked | None:
    by_colour, answer = dice.coin(), dice.coin()
    often = Counter(item.colour if by_colour else item.what for item in scene.shapes)
    pairs = [(more, less) for more, less in permutations(sorted(often), 2) if often[more] > often[less]]
    if not pairs:
        return None
    first, second = dice.pick(pairs) if answer else reversed(dice.pick(pairs))
    if by_colour:
        return ask("compare_colour", colour=first, colour2=second), YES_NO[answer]
    return ask("compare_shape", shapes=plural(first), shapes2=plural(second)), YES_NO[answer]


KINDS: dict[str, Callable[[Scene, Dice], Asked | None]] = {
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
    "holder": _holder,
    "beside": _beside,
}


def questions(scene: Scene, kinds: Iterable[str] = tuple(KINDS)) -> list[Question]:
    """At most one question of each kind, those that the scene allows, in an order of its own."""
    seed = f"{scene.seed}-{scene.split}-{scene.index}-{scene.difficulty}"
    asked = []
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"question kind {kind!r} is not known: choose from {', '.join(KINDS)}")
        if found := KINDS[kind](scene, Dice(f"{seed}-{kind}")):
            asked.append(Question(kind, *found))
    return Dice(f"{seed}-order").some(asked, len(asked))
