"""report.html: one file, nothing fetched, that tells a comparison from its short form down to single questions."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from ...reduction import Reducer
from ..answer_store import AnswerRecord
from ..comparison import ComparisonResults
from ..comparison_grid import FULL
from . import tables
from .gallery import gallery
from .html import embedded, picture, section, text
from .notes import COST, KINDS, PAIRS, PAPERS, PLOTS, QUALITY, REGRESSIONS
from .papers import questions
from .script import SCRIPT
from .short import budget_words, primary, sentences, smallest
from .style import STYLE
from .views import Views, sampled


@dataclass(frozen=True)
class Plot:
    title: str
    png: Path
    svg: Path


def page(results: ComparisonResults, plots: Sequence[Plot]) -> str:
    sections = list(_sections(results, plots))
    links = "".join(f'<a href="#{name}">{text(title)}</a>' for name, title, _ in sections)
    body = "\n".join(made for *_, made in sections)
    title = f"Comparison: {', '.join(results.prepared.found)}"
    asked = len(results.prepared.questions)
    told = f"{asked} questions, {len(results.cells)} rows, {len(results.records)} answers"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{STYLE}</style></head>\n<body>'
        f'<header><div class="page"><h1>{text(title)}</h1><p>{text(told)}</p></div></header>'
        f'<nav aria-label="Sections"><div class="page">{links}</div></nav>\n<main class="page">\n{body}\n</main>'
        f'<footer><div class="page">Written by dart_train. The same figures: results.jsonl, table.csv, pairs.csv, '
        f"cost.csv, table.md.</div></footer>\n<script>{SCRIPT}</script></body></html>\n"
    )


def _sections(results: ComparisonResults, plots: Sequence[Plot]) -> Iterator[tuple[str, str, str]]:
    """Name, title in the navigation, finished HTML."""
    short = "".join(f"<li>{each}</li>" for each in sentences(results))
    yield "short", "In short", section("short", "In short", "", f'<ul class="short">{short}</ul>')
    if plots:
        shown = "".join(f"<h3>{text(p.title)}</h3>{embedded(p.svg.read_bytes(), 'svg+xml', p.title)}" for p in plots)
        shown = f'<div class="plots">{shown}</div>'
        yield "plots", "Plots", section("plots", "Accuracy, budget, latency", PLOTS, shown)
    yield "tables", "Quality", section("tables", "Quality", QUALITY, tables.quality(results.scores))
    kinds = tables.kinds(results.scores)
    if kinds:
        yield "by-kind", "Kinds", section("by-kind", "By kind of question", KINDS, kinds)
    if results.costs:
        yield (
            "costs",
            "CellCost",
            section("costs", "CellCost, by the clock", _cost_note(results), tables.costs(results.costs)),
        )
    yield from _differences(results)
    yield from _pictures(results)
    yield "how", "How", section("how", "How it was measured", "", _how(results))


def _differences(results: ComparisonResults) -> Iterator[tuple[str, str, str]]:
    if results.pairs:
        made = tables.pairs(results.pairs, "differences")
        yield "pairs", "Row against row", section("pairs", "Row against row", PAIRS, made)


def _pictures(results: ComparisonResults) -> Iterator[tuple[str, str, str]]:
    views = Views(results)
    parts = [*questions(results), _heat(results, views)]
    if any(parts):
        yield "papers", "The papers' questions", section("papers", "The papers' questions", PAPERS, *parts)
    cards = gallery(results, views)
    if cards:
        yield "regressions", "Regressions", section("regressions", "Worst regressions", REGRESSIONS, cards)


def _heat(results: ComparisonResults, views: Views) -> str:
    least = smallest(primary(results))
    if least is None:
        return ""
    checkpoint = next(iter(results.prepared.found))
    lines: list[AnswerRecord] = [line for line in sampled(results.records, checkpoint, least) if line["method"] != FULL]
    made = views.heat(lines)
    if made is None:
        return ""
    asked = len({(line["set"], line["id"]) for line in lines})
    note = f"How often each place stays, of {asked} questions, {text(checkpoint)}, {budget_words(least)}."
    shown = picture(made, "share of tokens kept, by place in the picture, one map a method")
    return f'<h3>Where does each method look?</h3><p class="note">{note}</p><div class="heat">{shown}</div>'


def _cost_note(results: ComparisonResults) -> str:
    one = results.costs[0]
    shape = f"{one.rows} question(s) together, {one.prompt_tokens} prompt tokens, {one.visual_tokens} of them visual"
    return COST.format(repeats=one.total.repeats, shape=shape, new=one.new_tokens)


def _how(results: ComparisonResults) -> str:
    recipe, prepared = results.prepared.recipe, results.prepared
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
    facts = {
        **{f"checkpoint {name}": path for name, path in prepared.paths.items()},
        **{f"method {name}": config for name, config in _methods(results).items()},
        **{f"set {name}": f"{each.path}" for name, each in prepared.sets.items()},
        "answers": f"greedy, at most {recipe.compare.max_new_tokens} tokens, {recipe.compare.batch_size} in a batch",
        "precision": f"{recipe.model.dtype} (auto: as trained or saved)",
        "device": device,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, Python "
        f"{platform.python_version()}",
        "intervals": "95%; questions about one picture are taken for independent, which makes them a little narrow",
    }
    return f'<dl class="how">{"".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in facts.items())}</dl>'


def _methods(results: ComparisonResults) -> dict[str, str]:
    found = {}
    for cell in results.cells:
        if len(cell.stages) == 1:
            found[cell.method] = _options(cell.stages[0], ("method", "keep"))
        elif cell.stages:
            told = [_options(stage, ()) for stage in cell.stages]
            found[f"{cell.method} / {cell.budget}"] = "; then ".join(told)
    return found


def _options(reducer: Reducer, without: Sequence[str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in reducer.to_dict().items() if name not in without)
