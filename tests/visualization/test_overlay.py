"""Overlays and heat maps, read back from the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dart_train.models.families import Box, TokenPlace
from dart_train.visualization import Choice, overlay_panel, side_by_side
from dart_train.visualization.draw import PIVOT, wrap_text
from dart_train.visualization.heatmap import HeatMap, draw_heat_maps
from dart_train.visualization.overlay import OverlayPatch, draw_overlay

WIDTH = 80


def quarters(view: str = "image", image: int = 0, side: int = 40, frame: int = 0) -> list[TokenPlace]:
    half = side // 2
    boxes = [Box(x, y, x + half, y + half) for y in (0, half) for x in (0, half)]
    return [TokenPlace(image, view, box, frame) for box in boxes]


def plain(colour: tuple[int, int, int] = (200, 120, 40), side: int = 40) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def test_kept_patches_are_unchanged_and_dropped_ones_dark() -> None:
    boxes = [place.box for place in quarters() if place.box]
    page = draw_overlay(plain(), [OverlayPatch(box, i in (0, 3)) for i, box in enumerate(boxes)], WIDTH)
    centres = [page.getpixel(at) for at in ((20, 20), (60, 20), (20, 60), (60, 60))]
    assert centres[0] == centres[3] == (200, 120, 40)
    for dark in (centres[1], centres[2]):
        assert isinstance(dark, tuple) and max(dark) < 70


def test_only_pivots_have_a_ring() -> None:
    boxes = [place.box for place in quarters() if place.box]
    page = np.asarray(draw_overlay(plain(), [OverlayPatch(box, True, i == 2) for i, box in enumerate(boxes)], WIDTH))
    rows, columns = np.nonzero((page == PIVOT).all(-1))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (0, 40, 39, 79)
    assert page[60, 20].tolist() == [200, 120, 40]


def test_all_tokens_kept_is_the_unchanged_image() -> None:
    boxes = [place.box for place in quarters() if place.box]
    page = draw_overlay(plain(), [OverlayPatch(box, True) for box in boxes], WIDTH)
    assert page.getcolors() == [(WIDTH * WIDTH, (200, 120, 40))]


def test_parts_without_a_token_are_hatched() -> None:
    page = draw_overlay(plain(), [OverlayPatch(Box(0, 0, 20, 40), False)], WIDTH)
    assert len(page.crop((2, 2, 38, 78)).getcolors() or []) == 1
    assert len(page.crop((42, 2, 78, 78)).getcolors() or []) > 1


def test_every_image_view_and_frame_is_in_the_panel() -> None:
    one = overlay_panel([plain()], quarters(), Choice([True] * 4), width=100)
    two = overlay_panel([plain(), plain()], [*quarters(), *quarters(image=1)], Choice([True] * 8), width=100)
    both = overlay_panel([plain()], [*quarters("overview"), *quarters("tiles")], Choice([True] * 8), width=100)
    film = overlay_panel([[plain()] * 8], [p for i in range(0, 8, 2) for p in quarters("video", frame=i)],
                   Choice([True] * 16), width=100)  # fmt: skip
    head = one.height - 100
    assert two.height - head == 2 * 100 + 8
    assert both.height - head == 100 + 8 + 42
    assert film.height - head == (100 - 12) // 4
    assert {page.width for page in (one, two, both, film)} == {100}


def test_panels_have_equal_heights() -> None:
    with_pivots = overlay_panel([plain()], quarters(), Choice([True] * 4, [True] * 4, ("what", "colour")), "dart", 200)
    without = overlay_panel([plain()], quarters(), Choice([True] * 4), "a method with a very long name indeed", 200)
    assert with_pivots.size == without.size
    page = side_by_side([with_pivots, without], "what? " * 60)
    assert page.width == 2 * 200 + 3 * 16


def test_choice_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="kept has 3 entries; pivots has 5 entries; expected one for each of the 4"):
        overlay_panel([plain()], quarters(), Choice([True] * 3, [False] * 5))
    with pytest.raises(ValueError, match="1 images were given, but the tokens are of 2"):
        overlay_panel([plain()], quarters(image=1), Choice([True] * 4))


def test_long_texts_end_with_an_ellipsis() -> None:
    lines = wrap_text("word " * 100 + "x" * 300, 200, 14, max_lines=3)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert wrap_text("", 200, 14) == [""]


def test_heat_map_is_the_share_of_covered_area_that_was_kept() -> None:
    heat = HeatMap(cells=4)
    heat.add(quarters(), [True, False, False, True], [(40, 40)])
    heat.add(quarters(), [True, True, False, False], [(40, 40)])
    two = np.full((2, 2), 0.5)
    assert np.allclose(heat.share(), np.block([[two * 2, two], [two * 0, two]]))
    heat.add([TokenPlace(0, "image", Box(0, 0, 20, 10))], [False], [(40, 40)])  # half of the first row
    assert heat.share()[0].tolist() == [pytest.approx(2 / 3)] * 2 + [0.5] * 2


def test_heat_maps_without_tokens_are_nan_and_drawn() -> None:
    full, some = HeatMap(cells=2), HeatMap(cells=2)
    full.add(quarters(), [True] * 4, [(40, 40)])
    some.add(quarters()[:2], [True, False], [(40, 40)])
    assert np.isnan(some.share()[1]).all()
    page = draw_heat_maps({"all": full, "some": some})
    assert page.width == 2 * 220 + 3 * 16
    with pytest.raises(ValueError, match="no sample"):
        draw_heat_maps({"none": HeatMap()})
    with pytest.raises(ValueError, match="kept has 1 entries"):
        full.add(quarters(), [True], [(40, 40)])
