"""report.html opens from disk without a network, shows everything, and its tables sort."""

from __future__ import annotations

import base64
import csv
import re
from pathlib import Path

import pytest
from PIL import Image

from dart_train.evaluation.report.html import text
from tests.evaluation.report.browser import CHROMIUM, look

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

SORT = """() => {
  const found = [];
  for (const table of document.querySelectorAll("table.sorts")) {
    Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
      const read = () => Array.from(table.tBodies[0].rows, (row) => {
        const cell = row.cells[column];
        return cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v === "" ? null : +cell.dataset.v;
      });
      const one = { table: table.id, head: head.textContent, before: read() };
      head.querySelector("button").click();
      one.up = read(); one.sign = head.getAttribute("aria-sort");
      head.querySelector("button").click();
      one.down = read();
      one.signs = table.querySelectorAll("[aria-sort]").length;
      found.push(one);
    });
  }
  return found;
}"""
SHOWN = """() => ({
  title: document.title,
  sections: Array.from(document.querySelectorAll("section"), (each) => each.id),
  links: Array.from(document.querySelectorAll("nav a"), (a) => document.querySelector(a.hash) !== null),
  images: Array.from(document.images, (image) => image.complete && image.naturalWidth > 0),
  cards: Array.from(document.querySelectorAll(".card"), (card) => card.querySelectorAll("img").length),
  wide: document.documentElement.scrollWidth <= document.documentElement.clientWidth,
})"""
PICK = """() => {
  const shown = () => Array.from(document.querySelectorAll("#quality tbody tr")).filter((row) => !row.hidden).length;
  const select = document.querySelector("[data-picks=quality] select[name=checkpoint]");
  const before = shown();
  select.value = "twin"; select.dispatchEvent(new Event("change"));
  return [before, shown()];
}"""


@needs_browser
def test_it_renders_without_an_error(reported: Path, tmp_path: Path) -> None:
    found, heard = look(reported / "report.html", SHOWN, tmp_path)
    assert heard == []
    assert found["title"] == "Comparison: base, twin"
    assert found["sections"] == [
        "short",
        "plots",
        "tables",
        "by-kind",
        "costs",
        "pairs",
        "papers",
        "regressions",
        "how",
    ]
    assert all(found["links"]) and len(found["links"]) == 9
    assert all(found["images"]) and len(found["images"]) > 8
    assert len(found["cards"]) > 2 and min(found["cards"]) >= 2, "full tokens, and what lost it"
    assert found["wide"]


@needs_browser
def test_every_column_of_every_table_sorts(reported: Path, tmp_path: Path) -> None:
    found, heard = look(reported / "report.html", SORT, tmp_path)
    assert heard == [] and {each["table"] for each in found} >= {"quality", "kinds", "cost", "differences", "random"}
    for each in found:
        assert each["sign"] == "ascending" and each["signs"] == 1
        numbers = all(value is None or not isinstance(value, str) for value in each["before"])
        for values, down in ((each["up"], False), (each["down"], True)):
            assert sorted(map(str, values)) == sorted(map(str, each["before"])), each["head"]
            there = [value for value in values if value is not None]
            assert values[: len(there)] == there, "what is missing comes last"
            if numbers:
                assert there == sorted(there, reverse=down), (each["table"], each["head"])
    assert any(each["up"] != each["before"] for each in found)


@needs_browser
def test_a_checkpoint_can_be_shown_alone(reported: Path, tmp_path: Path) -> None:
    (before, after), heard = look(reported / "report.html", PICK, tmp_path)
    assert heard == [] and (before, after) == (12, 6)  # of one of two metrics


def test_nothing_is_fetched_from_anywhere(reported: Path) -> None:
    page = (reported / "report.html").read_text()
    places = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert places and all(place.startswith(("data:", "#")) for place in places)
    assert "@import" not in page and "url(" not in page and "fetch(" not in page


def test_plots_are_there_as_png_and_svg(reported: Path) -> None:
    for stem in ("accuracy_over_budget", "accuracy_over_latency", "accuracy_over_budget_small_anls"):
        with Image.open(reported / f"{stem}.png") as image:
            assert min(image.size) > 300 and len(image.convert("L").getcolors() or []) > 20
        assert (reported / f"{stem}.svg").read_text().count("<path") > 20
        assert (
            f"svg+xml;base64,{base64.b64encode((reported / f'{stem}.svg').read_bytes()).decode()}"
            in (reported / "report.html").read_text()
        )


def test_the_figures_are_those_of_the_table(reported: Path) -> None:
    page = (reported / "report.html").read_text()
    with (reported / "table.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "all" and row["metric"] == "exact_match"]
    shown = re.findall(r"</span>([\d.]+)</td>", page[page.index('id="quality"') :])
    assert [f"{100 * float(row['value']):.1f}" for row in rows] == shown[: len(rows)]


def test_a_kind_has_its_interval_and_number_of_questions(reported: Path) -> None:
    page = (reported / "report.html").read_text()
    told = page[page.index('<table class="sorts" id="kinds"') :] if '<table class="sorts" id="kinds"' in page else ""
    shown = re.findall(r'<div class="under">(\d+) to (\d+), (\d+)</div>', told)
    with (reported / "table.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] != "all"]
    expected = [(f"{100 * float(r['low']):.0f}", f"{100 * float(r['high']):.0f}", r["n"]) for r in rows]
    assert sorted(shown) == sorted(expected) and len(expected) > 8


def test_the_papers_questions_are_asked_of_the_cells(reported: Path) -> None:
    page = (reported / "report.html").read_text()
    for words in ("Is Random as strong", "Prune or merge?", "language guidance", "Where does each method look?"):
        assert words in page


def test_words_from_rows_cannot_become_markup() -> None:
    assert text('<script>alert("x")</script>') == "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;"


def test_wandb_gets_tables_and_pictures(reported: Path) -> None:
    runs = list((reported / "wandb").glob("offline-run-*"))
    assert len(runs) == 1
    media = runs[0] / "files" / "media"
    tables = {file.name.split("_")[0] for file in (media / "table" / "compare").glob("*.table.json")}
    assert tables == {"table", "pairs", "cost"}
    images = {file.name.rsplit("_", 2)[0] for file in (media / "images" / "compare").glob("*.png")}
    assert {"accuracy_over_budget", "accuracy_over_latency", "regressions"} <= images
    assert list((media / "html" / "compare").glob("report_*.html"))
