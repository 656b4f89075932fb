"""Questions about a scene, each with one short answer that follows from the scene alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from data.scenes.questions import Question
from data.scenes.rng import PortableRandom
from data.things.catalogue import Thing, an, things
from data.things.scene import Cell, ThingScene

PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}

Pairs = Iterator[tuple[str, str]]  # questions and answers


def place_of(scene: ThingScene, cell: Cell) -> str:
    """`top left` in a grid of three columns, `row 1, column 4` in a wider one."""
    if scene.columns == 3:
        return PLACES[cell.row][cell.column]
    return f"row {cell.row + 1}, column {cell.column + 1}"


def _once(scene: ThingScene) -> list[Cell]:
    """The cells of things that occur once."""
    counts = Counter(cell.thing for cell in scene.things)
    return [cell for cell in scene.things if counts[cell.thing] == 1]


def _name(cell: Cell) -> str:
    assert cell.thing is not None
    return cell.thing.name


def _the(cell: Cell) -> str:
    return f"the {_name(cell)}"


def _what(scene: ThingScene, rng: PortableRandom) -> Pairs:
    for cell in rng.sample(scene.things, len(scene.things)):
        place = place_of(scene, cell)
        yield (f"What is at the {place}?" if scene.columns == 3 else f"What is in {place}?"), _the(cell)


def _where(scene: ThingScene, rng: PortableRandom) -> Pairs:
    once = _once(scene)
    for cell in rng.sample(once, len(once)):
        yield f"Where is {_the(cell)}?", place_of(scene, cell)


def _count(scene: ThingScene, rng: PortableRandom) -> Pairs:
    others = list(dict.fromkeys(cell.thing for cell in scene.things if cell.thing != scene.focus))
    asked: list[Thing | None] = [scene.focus, rng.choice([scene.absent, *others])]
    for thing in asked:
        assert thing is not None
        number = sum(cell.thing == thing for cell in scene.things)
        yield f"How many {thing.plural} are there?", str(number)


def _exists(scene: ThingScene, rng: PortableRandom) -> Pairs:
    """Yes and no equally often, whatever the number of questions that are taken."""
    shown = list(dict.fromkeys(cell.thing for cell in scene.things))
    missing = [thing for thing in things() if thing.seen == scene.absent.seen and thing not in shown]
    answer = rng.coin()
    for _ in range(4):
        thing = rng.choice(shown if answer else missing)
        assert thing is not None
        yield f"Is there {an(thing.name)}?", "yes" if answer else "no"
        answer = not answer


def _next_to(scene: ThingScene, rng: PortableRandom) -> Pairs:
    once = _once(scene)
    pairs = []
    for cell in once:
        for side, (down, across) in SIDES.items():
            other = scene.at(cell.row + down, cell.column + across)
            if other and other.thing:
                pairs.append((f"What is {side} {_the(cell)}?", _the(other)))
    yield from rng.sample(pairs, len(pairs))


def _label(scene: ThingScene, rng: PortableRandom) -> Pairs:
    labelled = [cell for cell in _once(scene) if cell.text and not cell.is_price]
    for cell in rng.sample(labelled, len(labelled)):
        yield f"What does the label on {_the(cell)} say?", cell.text


def _price(scene: ThingScene, rng: PortableRandom) -> Pairs:
    priced = [cell for cell in _once(scene) if cell.is_price]
    for cell in rng.sample(priced, len(priced)):
        yield f"What does {_the(cell)} cost?", cell.text


def _note(scene: ThingScene, rng: PortableRandom) -> Pairs:
    yield from (("What does the note say?", cell.text) for cell in scene.notes)


def _category(scene: ThingScene, rng: PortableRandom) -> Pairs:
    """How many animals, vehicles, ... there are."""
    counts = Counter(cell.thing.category for cell in scene.things if cell.thing)
    plurals = {"animal": "animals", "vehicle": "vehicles", "tool": "tools", "plant": "plants", "building": "buildings"}
    shown = [category for category in plurals if counts[category]]
    if shown:
        category = rng.choice(shown)
        yield f"How many {plurals[category]} are there?", str(counts[category])


ASK: dict[str, Callable[[ThingScene, PortableRandom], Pairs]] = {
    "what": _what,
    "where": _where,
    "next_to": _next_to,
    "exists": _exists,
    "count": _count,
    "category": _category,
    "label": _label,
    "price": _price,
    "note": _note,
}
KINDS = tuple(ASK)


def questions(scene: ThingScene, kinds: Iterable[str] = KINDS, each: int = 1) -> list[Question]:
    """At most `each` questions of each kind, in random order; a kind that does not fit the scene is left out."""
    asked = []
    for kind in kinds:
        rng = PortableRandom(f"ask-{scene.seed}-{scene.split}-{scene.index}-{kind}")
        pairs = dict(ASK[kind](scene, rng))
        asked += [Question(kind, question, answer) for question, answer in list(pairs.items())[:each]]
    order = PortableRandom(f"order-{scene.seed}-{scene.split}-{scene.index}")
    return order.sample(asked, len(asked))
