"""report.html opens from disk without a network, shows everything, sorts, filters and folds."""

from __future__ import annotations

import base64
import csv
import re
import tomllib
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dart_train.evaluation.report import build
from dart_train.evaluation.report.build import render
from dart_train.evaluation.results import ComparisonResults
from tests.evaluation.report.browser import CHROMIUM, run_in_browser
from tests.fixtures.run_scene import ROOT

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")

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
  open: document.querySelectorAll("#pairs details[open]").length,
  counts: Array.from(document.querySelectorAll("#pairs summary"), (each) => each.textContent),
})"""
CUT_OFF = """() => {
  const folded = document.querySelectorAll("details"), page = document.documentElement, found = {};
  folded.forEach((each) => { each.open = true; });
  for (const width of ["none", "1000px", "700px"]) {
    document.querySelector("main").style.maxWidth = width;
    document.querySelectorAll(".fit").forEach(fit);
    const cut = Array.from(document.querySelectorAll(".fit")).filter((box) => box.scrollWidth > box.clientWidth);
    found[width] = {
      page: page.scrollWidth > page.clientWidth,
      cut: cut.map((box) => box.querySelector("table").id),
      cards: document.querySelectorAll(".cards-layout").length,
    };
  }
  document.querySelector("main").style.maxWidth = "";
  folded.forEach((each) => { each.open = false; });
  return found;
}"""
FILTER = """() => {
  const shown = () => Array.from(document.querySelectorAll("#quality tbody tr")).filter((row) => !row.hidden)
    .map((row) => [row.dataset.checkpoint, row.dataset.method]);
  const pick = (name, value) => {
    const select = document.querySelector(`[data-filters=scores] select[name=${name}]`);
    select.value = value; select.dispatchEvent(new Event("change"));
  };
  const all = shown();
  pick("checkpoint", "twin");
  const twin = shown();
  pick("method", "random");
  return [all, twin, shown()];
}"""


@pytest.fixture(scope="module")
def wide(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a desktop browser shows; one launch for all tests."""
    return browse(reported, tmp_path_factory.mktemp("wide"), 1440)


def browse(reported: Path, folder: Path, width: int) -> dict[str, Any]:
    functions = {"shown": SHOWN, "filters": FILTER, "cut off": CUT_OFF, "sorting": SORT}
    calls = ", ".join(f'"{name}": ({function})()' for name, function in functions.items())
    found, problems = run_in_browser(reported / "report.html", f"() => ({{{calls}}})", folder, width)
    return {**found, "problems": problems}


@needs_browser
def test_report_renders_without_an_error(wide: dict[str, Any]) -> None:
    found = wide["shown"]
    assert wide["problems"] == [] and found["title"] == "Comparison: base, twin"
    sections = ["glance", "summary", "plots", "scores", "by-kind", "costs", "pairs", "papers", "regressions", "how"]
    assert found["sections"] == sections and all(found["links"])
    assert len(found["images"]) > 8 and all(found["images"])
    assert found["cards"] and min(found["cards"]) >= 2, "full tokens and a reduction"
    assert found["open"] == 0 and "twin against base 6 pairs, 0 significant after Holm's correction" in found["counts"]


@needs_browser
def test_no_table_is_cut_off(wide: dict[str, Any]) -> None:
    found = wide["cut off"]
    assert all(not each["page"] and not each["cut"] for each in found.values()), found
    assert found["none"]["cards"] == 0 < found["700px"]["cards"], "narrow tables become cards"


@needs_browser
def test_narrow_screen(reported: Path, tmp_path: Path) -> None:
    found = browse(reported, tmp_path, 500)
    assert found["problems"] == [] and not found["cut off"]["none"]["page"] and not found["cut off"]["none"]["cut"]


@needs_browser
def test_every_column_of_every_table_sorts(wide: dict[str, Any]) -> None:
    found = wide["sorting"]
    assert {each["table"] for each in found} >= {"quality", "kinds-1", "cost", "pairs-1", "random", "merging"}
    for each in found:
        assert each["sign"] == "ascending" and each["signs"] == 1
        numbers = all(value is None or not isinstance(value, str) for value in each["before"])
        for values, down in ((each["up"], False), (each["down"], True)):
            assert sorted(map(str, values)) == sorted(map(str, each["before"])), each["head"]
            present = [value for value in values if value is not None]
            assert values[: len(present)] == present, "missing values come last"
            if numbers:
                assert present == sorted(present, reverse=down), (each["table"], each["head"])
    assert any(each["up"] != each["before"] for each in found)


@needs_browser
def test_filters_by_checkpoint_and_method_keep_full_tokens(wide: dict[str, Any]) -> None:
    everything, twin, random = wide["filters"]
    assert len(everything) == 12  # of one of two metrics
    assert len(twin) == 6 and {checkpoint for checkpoint, _ in twin} == {"twin"}
    assert random == [["twin", "full"], ["twin", "random"]]


def test_report_fetches_nothing(reported: Path) -> None:
    page = (reported / "report.html").read_text()
    places = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert places and all(place.startswith(("data:", "#")) for place in places)
    assert "@import" not in page and "url(" not in page and "fetch(" not in page


def test_plots_are_written_as_png_and_svg(reported: Path) -> None:
    page = (reported / "report.html").read_text()
    for stem in ("accuracy_over_budget", "accuracy_over_latency", "accuracy_over_budget_small_anls"):
        with Image.open(reported / f"{stem}.png") as image:
            assert min(image.size) > 300 and len(image.convert("L").getcolors() or []) > 20
        svg = (reported / f"{stem}.svg").read_bytes()
        assert svg.count(b"<path") > 20 and f"svg+xml;base64,{base64.b64encode(svg).decode()}" in page


def rows_of(page: str, table: str) -> list[list[tuple[str, str]]]:
    """(value, detail) of every cell of a table, row by row."""
    body = page[page.index(f'id="{table}"') :].split("<tbody>")[1].split("</tbody>")[0]
    cell = re.compile(r'<span class="value[^>]*>(.*?)</span>(?:<span class="detail">(.*?)</span>)?</td>')
    return [cell.findall(row) for row in body.split("</tr>")[:-1]]


def test_scores_in_the_report_are_those_of_table_csv(reported: Path) -> None:
    page = (reported / "report.html").read_text()
    with (reported / "table.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "all"]
    expected = [
        (f"{100 * float(row['value']):.1f}", f"{100 * float(row['low']):.1f} to {100 * float(row['high']):.1f}")
        for row in rows
    ]
    assert [row[4] for row in rows_of(page, "quality")] == expected and len(expected) == 24


def test_every_kind_has_its_score_interval_and_number_of_questions(reported: Path) -> None:
    page = (reported / "report.html").read_text()
    shown = [c for i in (1, 2, 3) for row in rows_of(page, f"kinds-{i}") for c in row[3:] if c[0] != "-"]
    with (reported / "table.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] != "all"]
    expected = [
        (f"{100 * float(r['value']):.1f}", f"{100 * float(r['low']):.0f} to {100 * float(r['high']):.0f}, n {r['n']}")
        for r in rows
    ]
    assert sorted(shown) == sorted(expected) and len(expected) > 8


def test_questions_of_the_papers_are_answered_from_the_cells(reported: Path) -> None:
    page = (reported / "report.html").read_text()
    for words in ("Is a random selection as good?", "Prune or merge?", "language guidance", "keep tokens?"):
        assert words in page


def test_template_style_and_script_are_package_data() -> None:
    """Files that are not listed are missing from the wheel."""
    package = Path(build.__file__).parent
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    patterns = listed["dart_train.evaluation.report"]
    assets = [file.name for file in package.iterdir() if file.is_file() and file.suffix != ".py"]
    assert len(assets) == 3 and all(any(fnmatch(name, each) for each in patterns) for name in assets)


def test_text_from_rows_models_and_recipes_is_escaped(results: ComparisonResults) -> None:
    attack = '<script>alert("x")</script>'
    records = [
        {**record, "prediction": attack, "question": attack} if record["method"] != "full" else record
        for record in results.records
    ]
    records = [{**record, "method": record["method"].replace("random", attack)} for record in records]
    page = render(replace(results, records=records, costs=[]), [])
    assert attack not in page and page.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;") > 2


def test_wandb_gets_tables_and_images(reported: Path) -> None:
    runs = list((reported / "wandb").glob("offline-run-*"))
    assert len(runs) == 1
    media = runs[0] / "files" / "media"
    tables = {file.name.split("_")[0] for file in (media / "table" / "compare").glob("*.table.json")}
    assert tables == {"table", "pairs", "cost"}
    images = {file.name.rsplit("_", 2)[0] for file in (media / "images" / "compare").glob("*.png")}
    assert {"accuracy_over_budget", "accuracy_over_latency", "regressions"} <= images
    assert list((media / "html" / "compare").glob("report_*.html"))
