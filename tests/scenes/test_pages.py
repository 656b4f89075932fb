"""Pages of text: drawn the same everywhere, and their repeated pixels do not matter to what is read on them."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

import dart_train
from dart_train import TowerDART, attach
from dart_train.chat import generate_answers
from dart_train.models.prompts import user_message
from data.pages import main
from data.scenes.drawing import draw
from data.scenes.page import draw_page, page_questions, page_scene, repeated_share

ROOT = Path(__file__).parents[2]
PAGES = 6


def test_small_pages_have_plates_of_all_colours_and_no_character_twice_on_one() -> None:
    for index in range(20):
        page = page_scene(0, "test", index)
        assert len({plate.colour for plate in page.plates}) == len(page.items) == page.level.colours
        assert len({(plate.row, plate.column) for plate in page.plates}) == len(page.plates)
        assert all(len(set(plate.text)) == len(plate.text) for plate in page.plates)
        assert [q.answer for q in page_questions(page)] == [plate.text for plate in page.plates]
        assert draw(page).size == (96, 96) and page_scene(0, "test", index) == page


def test_large_page_repeats_its_blank_paper_at_any_patch_size() -> None:
    page = draw_page(504, 504)
    assert page.tobytes() == draw_page(504, 504).tobytes() != draw_page(504, 504, seed=1).tobytes()
    assert all(0.2 < repeated_share(page, patch) < 0.8 for patch in (14, 16, 28, 32))


def test_command_writes_a_page_and_questions_in_the_format_of_rows(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--test", "2", "--size", "280"]) == 0
    assert Image.open(tmp_path / "page.png").size == (280, 280)
    rows = json.loads((tmp_path / "test.json").read_text())
    assert len(rows) == 10 and all((tmp_path / "images" / row["image"]).is_file() for row in rows)


def test_answers_about_pages_stay_without_repeated_pixels_in_the_tower() -> None:
    """The tiny base; its tower has absolute positions, and the repeated patches of paper take those of the first."""
    loaded = dart_train.load(str(ROOT / "data" / "tiny_base"), reducer=None)
    pages = [page_scene(1, "test", index) for index in range(PAGES)]
    asked = [(draw(page), question) for page in pages for question in page_questions(page)]
    conversations = [[user_message(question.question, [image])] for image, question in asked]
    plain = generate_answers(loaded, conversations, max_new_tokens=6)
    with attach(loaded.model, TowerDART(layer=0, tolerance=0.0)) as attached:
        reduced = generate_answers(loaded, conversations, max_new_tokens=6)
        (units,) = attached.tower_units
    assert units is not None and len(units.kept) < 0.5 * len(units.of)
    assert reduced == plain
    right = sum(answer.strip() == question.answer for answer, (_, question) in zip(plain, asked, strict=True))
    assert right >= 0.9 * len(asked)
