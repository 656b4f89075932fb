"""Questions of the drawn set: right answers, blind guessing at chance, no scene in two splits, a closed vocabulary."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import pairwise

import pytest

from data import shapes
from data.scenes.blind_baseline import BlindBaseline, blind_baselines
from data.shapes import KINDS, LEVELS, Question, Scene
from tests.scenes.shapes_oracle import worked_out

DIFFICULTIES = list(LEVELS)


@cache
def scenes_and_questions(difficulty: str) -> list[tuple[Scene, list[Question]]]:
    scenes = [shapes.scene(0, "train", index, difficulty) for index in range(300)]
    return [(scene, shapes.questions(scene)) for scene in scenes]


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_every_answer_follows_from_the_scene_alone(difficulty: str) -> None:
    grid = LEVELS[difficulty].grid
    kinds: Counter[str] = Counter()
    for scene, questions in scenes_and_questions(difficulty):
        for one in questions:
            assert one.answer == worked_out(one.question, shapes.describe(scene), grid), (one, scene)
            kinds[one.kind] += 1
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 150, kinds


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_fewer_kinds_do_not_change_the_questions(difficulty: str) -> None:
    for scene, questions in scenes_and_questions(difficulty)[:20]:
        some = shapes.questions(scene, ("plate", "count"))
        assert {q.kind for q in some} <= {"plate", "count"}
        assert set(some) == {q for q in questions if q.kind in ("plate", "count")}


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_guessing_without_the_image_is_no_better_than_chance(difficulty: str) -> None:
    level = LEVELS[difficulty]
    places = 9 if level.grid % 3 == 0 else 4
    chances = {
        "colour": 1 / level.colours, "shape": 1 / level.shapes, "count": 1 / (level.most + 1),
        "exists": 1 / 2, "compare": 1 / 2, "relation": 1 / 2, "position": 1 / places,
        "number": 0, "word": 1 / len(level.word_list), "plate": 0,
        "holder": 1 / level.colours, "beside": (1 / level.colours + 1 / level.shapes) / 2,
    }  # fmt: skip
    entries = {one.kind: one for one in blind_baselines(difficulty, scenes=500)}
    assert set(entries) == set(chances)
    for kind, chance in chances.items():
        noise = 3.5 * (max(chance, 0.01) * (1 - chance) / entries[kind].questions) ** 0.5
        assert _best(entries[kind]) <= chance + noise, entries[kind]


def _best(entry: BlindBaseline) -> float:
    return max(entry.majority, entry.informed)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_yes_is_as_frequent_as_no(difficulty: str) -> None:
    for kind in ("exists", "compare", "relation"):
        answers = [q.answer for _, questions in scenes_and_questions(difficulty) for q in questions if q.kind == kind]
        assert abs(answers.count("yes") / len(answers) - 0.5) < 1.75 / len(answers) ** 0.5


@pytest.mark.parametrize("difficulty", ["tiny", "hard"])
def test_wording_of_exists_does_not_give_away_the_answer(difficulty: str) -> None:
    """If the answer is no, the colour and the shape are both in the image, but not together."""
    for scene, questions in scenes_and_questions(difficulty):
        for one in questions:
            if one.kind == "exists" and one.answer == "no":
                colour, what = one.question.rstrip("?").split()[-2:]
                assert colour in {item.colour for item in scene.shapes}
                assert what in {item.what for item in scene.shapes}


def test_no_scene_is_in_two_splits_whatever_the_seeds() -> None:
    owner: dict[str, str] = {}
    quarters: dict[str, set[int]] = {}
    for split in ("train", "validation", "test"):
        for seed in (0, 1, 2):
            for index in range(150):
                scene = shapes.scene(seed, split, index, "tiny")
                assert owner.setdefault(shapes.fingerprint(scene), split) == split
                quarters.setdefault(split, set()).add(int(shapes.fingerprint(scene)[:8], 16) % 4)
    assert len(owner) == 3 * 3 * 150, "scenes repeat within a split"
    assert list(quarters.values()) == [{0, 1}, {2}, {3}], "a hash can be in two splits"


def test_scene_that_differs_in_pixels_only_counts_as_the_same() -> None:
    scene = shapes.scene(0, "train", 0, "small")
    moved = Scene(9, "test", 7, "small", tuple(_moved(item) for item in scene.items), "", paper=2)
    assert shapes.fingerprint(moved) == shapes.fingerprint(scene)


def _moved(item: shapes.Item) -> shapes.Item:
    return shapes.Item(item.row, item.column, item.colour, item.what, item.text, item.x + 1, item.y, 9)


def test_symbols_describe_the_entire_scene() -> None:
    for difficulty in DIFFICULTIES:
        known = set(shapes.symbol_vocabulary(difficulty))
        for scene, _ in scenes_and_questions(difficulty)[:50]:
            listed = shapes.symbols(scene)
            assert set(listed) <= known
            starts = [n for n, word in enumerate(listed) if word.startswith("row")] + [len(listed)]
            parts = [listed[a:b] for a, b in pairwise(starts)]
            lines = [f"{p[0][3:]} {p[1][6:]} {p[2]} {p[3]} {''.join(p[4:])}".strip() for p in parts]
            assert "\n".join(lines) == shapes.describe(scene)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_vocabulary_is_exactly_the_words_used(difficulty: str) -> None:
    used: set[str] = set()
    for _, questions in scenes_and_questions(difficulty):
        for one in questions:
            used |= {*shapes.split_words(one.question), *shapes.split_words(one.answer)}
    words = shapes.vocabulary(difficulty)
    assert len(words) == len(set(words))
    assert used <= set(words)
    assert len(used) >= 0.95 * len(words), sorted(set(words) - used)


def test_unknown_names_are_refused() -> None:
    scene = shapes.scene(0, "train", 0, "tiny")
    for call, word in (
        (lambda: shapes.scene(0, "val", 0, "tiny"), "validation"),
        (lambda: shapes.scene(0, "train", 0, "huge"), "tiny, small"),
        (lambda: shapes.questions(scene, ("smell",)), "colour"),
        (lambda: shapes.patch_labels(scene, 7), "96 pixels"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
