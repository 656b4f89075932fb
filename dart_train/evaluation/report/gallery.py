"""Cards of single questions: what full tokens saw and said, and what the reductions kept and said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from ..answer_store import AnswerRecord
from ..comparison import ComparisonResults
from ..scoring import ALL_KINDS
from .html import picture, text
from .regressions import Regression, regressions
from .views import Views

CARDS = 6  # of a checkpoint and a set
_PANELS = 3  # reductions on a card


def gallery(results: ComparisonResults, views: Views) -> str:
    """Finished HTML; empty where nothing was lost."""
    parts, several = [], len({line["set"] for line in results.records}) > 1
    for checkpoint, name, found in lost(results, CARDS):
        title = f"{checkpoint}, {name}" if several else checkpoint
        cards = "".join(_card(each, views) for each in found)
        parts.append(f'<h3>{text(title)}</h3><div class="cards">{cards}</div>')
    return "".join(parts)


def lost(results: ComparisonResults, most: int) -> Iterator[tuple[str, str, list[Regression]]]:
    """Checkpoint, set, and what was lost there, by the first metric of the set."""
    metrics: dict[str, str] = {}
    for entry in results.scores:
        if entry.kind == ALL_KINDS:
            metrics.setdefault(entry.set, entry.metric)
    for checkpoint in results.prepared.found:
        for name, metric in metrics.items():
            mine = [line for line in results.records if line["set"] == name]
            found = regressions(mine, checkpoint, metric, most)
            if found:
                yield checkpoint, name, found


def panels(each: Regression, views: Views) -> list[tuple[AnswerRecord, Image.Image | None]]:
    """Full tokens, then the gentlest reduction of each method that lost it, as many as there is room for."""
    shown: dict[str, AnswerRecord] = {}
    for line in each.wrong:
        shown.setdefault(line["method"], line)
    lines = [each.full, *list(shown.values())[:_PANELS]]
    return [(line, views.panel(line, _title(line))) for line in lines]


def _card(each: Regression, views: Views) -> str:
    full = each.full
    lost = f"{len(each.wrong)} of {len(each.wrong) + each.right} reduced rows lose it"
    kind = f"{text(full['kind'])}; " if full["kind"] else ""
    right = " or ".join(dict.fromkeys(full["answers"]))
    head = f"<h4>{text(full['question'])}</h4><p>{kind}right: <b>{text(right)}</b>; {lost}; id {text(full['id'])}</p>"
    views_ = "".join(_figure(line, image) for line, image in panels(each, views))
    return f'<article class="card">{head}<div class="views">{views_}</div></article>'


def _figure(line: AnswerRecord, image: Image.Image | None) -> str:
    said = f"says <b>{text(line['prediction']) or '(nothing)'}</b>"
    if image is None:
        return f"<figure><figcaption>{text(_title(line))}: {said}</figcaption></figure>"
    alt = f"{_title(line)}: kept tokens over the picture of question {line['id']}"
    return f"<figure>{picture(image, alt)}<figcaption>{said}</figcaption></figure>"


def _title(line: AnswerRecord) -> str:
    return "full tokens" if line["method"] == "full" else f"{line['method']} {line['budget']}"


def pictures_of(results: ComparisonResults, views: Views, most: int) -> Sequence[tuple[str, Image.Image]]:
    """For trackers: a caption and a picture of each reduction that lost a question."""
    found = []
    for checkpoint, _, mine in lost(results, most):
        for each in mine:
            for line, image in panels(each, views):
                if image is not None:
                    caption = f"{checkpoint}, {_title(line)}: {line['question']} says {line['prediction']!r}"
                    found.append((caption, image))
    return found
