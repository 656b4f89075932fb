"""report.html: one file that opens from disk without a network, from the headline down to single questions."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ...common.io import atomic_write
from ...common.metrics import METRICS
from ...reduction import Reducer
from ..cost import representative_questions
from ..results import ComparisonResults
from ..scoring import ALL_KINDS
from .findings import best_trades, budget_words, paper_questions, primary_rows, smallest_budget, summary_sentences
from .glance import Glance, glance_of
from .plots import over_budget, over_latency, save
from .regressions import TokenImages, answer_title, heat_records, worst_regressions
from .tables import cell_filters, cost_table, kind_tables, pair_tables, quality_table

NAME = "report.html"
QUESTIONS = 6  # regressions shown of one checkpoint and set
_FOLDER = Path(__file__).parent  # of the template, the style sheet and the script
_LOSSLESS_PIXELS = 200_000  # images up to this size are embedded as PNG


@dataclass(frozen=True)
class Plot:
    title: str
    png: Path
    svg: Path


@dataclass(frozen=True)
class WrittenReport:
    page: Path
    plots: list[Plot]


def write_report(results: ComparisonResults) -> WrittenReport:
    """Writes report.html and the plots to the comparison's folder."""
    plots = write_plots(results)
    page = results.folder / NAME
    atomic_write(page, render(results, plots))
    return WrittenReport(page, plots)


def write_plots(results: ComparisonResults) -> list[Plot]:
    """Accuracy over budget, and over latency if it was timed, for each set and metric. File names of all but the first
    set and metric contain their names."""
    plots: list[Plot] = []
    rows = [row for row in results.scores if row.kind == ALL_KINDS]
    for name, metric in dict.fromkeys((row.set, row.metric) for row in rows):
        here = [row for row in rows if (row.set, row.metric) == (name, metric)]
        suffix = f"_{_file_name(name)}_{metric}" if plots else ""
        title = METRICS[metric].title
        stem = results.folder / f"accuracy_over_budget{suffix}"
        plots.append(Plot(f"{name}: {title}, by visual tokens kept", *save(over_budget(here, title), stem)))
        if results.costs:
            stem = results.folder / f"accuracy_over_latency{suffix}"
            plots.append(Plot(f"{name}: {title}, by latency", *save(over_latency(here, results.costs, title), stem)))
    return plots


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name)


def render(results: ComparisonResults, plots: Sequence[Plot]) -> str:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    images = TokenImages(results)
    quality, kinds, pairs = quality_table(results.scores), kind_tables(results.scores), pair_tables(results.pairs)
    costs = cost_table(results.costs)
    return environment.get_template("report.html.jinja").render(
        style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),  # our own files, not escaped
        script=Markup((_FOLDER / "report.js").read_text(encoding="utf-8")),
        title=f"Comparison: {', '.join(results.prepared.found)}",
        counts=_counts(results),
        glance=_glance(glance_of(results, images)),
        trades=best_trades(results),
        sentences=summary_sentences(results),
        plots=[(plot.title, _data_uri(plot.svg.read_bytes(), "svg+xml")) for plot in plots],
        quality=quality,
        quality_filters=cell_filters(quality.rows, "set", "metric"),
        kinds=kinds,
        kind_filters=cell_filters([row for table in kinds for row in table.rows], "set", "metric"),
        costs=costs,
        cost=results.costs[0] if results.costs else None,
        cost_filters=cell_filters(costs.rows),
        pairs=pairs,
        pair_filters=cell_filters([row for each in pairs for row in each.table.rows], "set", "metric", "kind"),
        questions=paper_questions(results),
        heat=_heat_map(results, images),
        galleries=list(_galleries(results, images)),
        facts=measurement_facts(results),
    )


def _counts(results: ComparisonResults) -> str:
    questions = results.prepared.questions
    with_video = sum(question.videos > 0 for question in questions)
    about = f" ({with_video} about videos)" if with_video else ""
    return f"{len(questions)} questions{about}, {len(results.cells)} rows, {len(results.records)} answers"


def _glance(found: Glance | None) -> dict[str, Any] | None:
    """The images as the page embeds them; the shares of the bar in percent."""
    if found is None:
        return None
    names = {
        "both": "right with both",
        "gained": "right only when reduced",
        "lost": "lost",
        "neither": "wrong with both",
    }
    counts = {name: getattr(found, name) for name in names}
    bar = [
        {"name": name, "title": title, "number": counts[name], "share": 100 * counts[name] / max(1, found.total)}
        for name, title in names.items()
    ]
    cards = [
        {
            "question": each.text,
            "kind": each.kind,
            "answers": each.answers,
            "panels": [{**vars(panel), "image": panel.image and _embedded(panel.image)} for panel in each.panels],
        }
        for each in found.questions
    ]
    return {"headline": found.headline, "text": found.text, "bar": bar, "cards": cards, "scorer": found.has_scorer}


def _heat_map(results: ComparisonResults, images: TokenImages) -> dict[str, str] | None:
    budget = smallest_budget(primary_rows(results))
    if budget is None:
        return None
    checkpoint = next(iter(results.prepared.found))
    records = heat_records(results.records, checkpoint, budget)
    image = images.heat_map(records)
    if image is None:
        return None
    number = len({(record["set"], record["id"]) for record in records})
    note = f"How often each place is kept, over {number} questions: {checkpoint}, {budget_words(budget)}."
    return {"note": note, "image": _embedded(image)}


def _galleries(results: ComparisonResults, images: TokenImages) -> Iterator[dict[str, Any]]:
    several_sets = len({record["set"] for record in results.records}) > 1
    for checkpoint, name, lost in worst_regressions(results, QUESTIONS):
        cards = []
        for regression in lost:
            panels = [
                {"title": answer_title(record), "answer": record["prediction"], "image": image and _embedded(image)}
                for record, image in images.panels(regression)
            ]
            cards.append(
                {
                    "question": regression.full["question"],
                    "kind": regression.full["kind"],
                    "id": regression.full["id"],
                    "answers": " or ".join(dict.fromkeys(regression.full["answers"])),
                    "lost": len(regression.wrong),
                    "reduced": len(regression.wrong) + regression.correct,
                    "panels": panels,
                }
            )
        yield {"title": f"{checkpoint}, {name}" if several_sets else checkpoint, "cards": cards}


def measurement_facts(results: ComparisonResults) -> dict[str, str]:
    """How it was measured."""
    recipe, prepared = results.prepared.recipe, results.prepared
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
    methods = {}
    for cell in results.cells:
        if len(cell.stages) == 1:
            methods[f"method {cell.method}"] = _options(cell.stages[0], ("method", "keep"))
        elif cell.stages:
            methods[f"method {cell.method} / {cell.budget}"] = "; then ".join(_options(each) for each in cell.stages)
    return {
        **{f"checkpoint {name}": path for name, path in prepared.paths.items()},
        **methods,
        **{f"set {name}": str(each.path) for name, each in prepared.sets.items()},
        **_video_facts(results),
        "answers": f"greedy, at most {recipe.compare.max_new_tokens} tokens, batches of {recipe.compare.batch_size}",
        "precision": f"{recipe.model.dtype} (auto: as trained or saved)",
        "device": device,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}",
        "intervals": "95%; questions about the same image are treated as independent, so intervals are a little narrow",
    }


def _video_facts(results: ComparisonResults) -> dict[str, str]:
    """Which frames were used, and what was timed, where questions have videos."""
    prepared, recipe = results.prepared, results.prepared.recipe
    if not any(question.videos for question in prepared.questions):
        return {}
    options = recipe.data.video
    frames = f"at most {options.frames} frames of each, evenly spaced"
    frames += "" if options.fps is None else f", {options.fps:g} for each second"
    if results.costs:
        timed = representative_questions(prepared.questions, recipe.compare.timing_batch_size)
        frames += f"; {sum(question.videos > 0 for question in timed)} of the {len(timed)} timed questions have a video"
    return {"videos": frames}


def _options(reducer: Reducer, without: Sequence[str] = ()) -> str:
    return ", ".join(f"{name}={value}" for name, value in reducer.to_dict().items() if name not in without)


def _embedded(image: Image.Image) -> str:
    stream = io.BytesIO()
    if image.width * image.height <= _LOSSLESS_PIXELS:
        image.save(stream, "PNG")
        return _data_uri(stream.getvalue(), "png")
    image.convert("RGB").save(stream, "JPEG", quality=86)
    return _data_uri(stream.getvalue(), "jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
