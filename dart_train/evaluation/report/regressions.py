"""Single questions that a reduction lost, and where on the image each method keeps tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from PIL import Image
from tqdm import tqdm

from ...common.metrics import METRICS, TRUE_NEGATIVE, TRUE_POSITIVE
from ...data.images import ImageStore
from ...data.videos import Clip
from ...models.families import TokenPlace, UnknownGridError
from ...models.loading import build_meta_model
from ...models.token_places import ImageOrFrames, locate_tokens
from ...visualization import Choice, overlay_panel
from ...visualization.heatmap import HeatMap, draw_heat_maps
from ..answer_store import AnswerRecord, from_ranges
from ..comparison_grid import FULL
from ..prompts import QuestionEncoder
from ..questions import Question
from ..results import ComparisonResults
from ..scoring import ALL_KINDS

PANEL_WIDTH = 264  # pixels
_PANELS = 3  # reductions shown for one question
_HEAT_QUESTIONS = 200  # in one heat map
_CORRECT = 0.5  # the score from which on an answer counts as correct


@dataclass(frozen=True)
class Regression:
    """A question that full tokens answer correctly. wrong: the answers of reductions that do not, the one that keeps
    most tokens first; correct: how many reduced cells still do."""

    full: AnswerRecord
    wrong: tuple[AnswerRecord, ...]
    correct: int


def regressions(records: Sequence[AnswerRecord], checkpoint: str, metric: str, most: int) -> list[Regression]:
    """Questions lost by most cells first; kinds of questions take turns, so that no kind fills the page."""
    by_question: dict[tuple[str, str], list[AnswerRecord]] = {}
    for record in records:
        if record["checkpoint"] == checkpoint:
            by_question.setdefault((record["set"], record["id"]), []).append(record)
    found = [each for answers in by_question.values() if (each := _regression(answers, metric)) is not None]
    found.sort(key=lambda each: (-len(each.wrong), each.full["id"]))
    by_kind: dict[str, list[Regression]] = {}
    for each in found:
        by_kind.setdefault(each.full["kind"], []).append(each)
    return [each for turn in zip_longest(*by_kind.values()) for each in turn if each is not None][:most]


def _regression(answers: Sequence[AnswerRecord], metric: str) -> Regression | None:
    full = next((record for record in answers if record["method"] == FULL), None)
    if full is None or not is_correct(metric, full):
        return None
    reduced = [record for record in answers if record["method"] != FULL]
    wrong = [record for record in reduced if not is_correct(metric, record)]
    wrong.sort(key=lambda record: -int(record["kept"]))
    return Regression(full, tuple(wrong), len(reduced) - len(wrong)) if wrong else None


def is_correct(metric: str, record: AnswerRecord) -> bool:
    score = METRICS[metric].score(record["prediction"], record["answers"])
    if score is None:
        return False
    return score in (TRUE_POSITIVE, TRUE_NEGATIVE) if metric == "yes_no_f1" else score >= _CORRECT


def worst_regressions(results: ComparisonResults, most: int) -> Iterator[tuple[str, str, list[Regression]]]:
    """(checkpoint, set, regressions) by the first metric of the set."""
    metrics: dict[str, str] = {}
    for row in results.scores:
        if row.kind == ALL_KINDS:
            metrics.setdefault(row.set, row.metric)
    for checkpoint in results.prepared.found:
        for name, metric in metrics.items():
            of_set = [record for record in results.records if record["set"] == name]
            found = regressions(of_set, checkpoint, metric, most)
            if found:
                yield checkpoint, name, found


def answer_title(record: AnswerRecord) -> str:
    return "full tokens" if record["method"] == FULL else f"{record['method']} {record['budget']}"


@dataclass(frozen=True)
class QuestionTokens:
    """sizes: of the question's images, and of the frames of its videos. places: what each visual token covers."""

    sizes: list[tuple[int, int]]
    places: list[TokenPlace]


class TokenImages:
    """Kept tokens drawn over the user's own images. Where tokens are on an image follows from the checkpoint's
    processor and configuration; no weights are read."""

    def __init__(self, results: ComparisonResults) -> None:
        self.results = results
        self._models: dict[str, tuple[Any, QuestionEncoder]] = {}
        self._tokens: dict[tuple[str, str, str], QuestionTokens | None] = {}

    def panels(self, regression: Regression) -> list[tuple[AnswerRecord, Image.Image | None]]:
        """Full tokens, then for some methods the cell that loses the question although it keeps most tokens."""
        by_method: dict[str, AnswerRecord] = {}
        for record in regression.wrong:
            by_method.setdefault(record["method"], record)
        records = [regression.full, *list(by_method.values())[:_PANELS]]
        return [(record, self.panel(record)) for record in records]

    def panel(self, record: AnswerRecord, title: str | None = None, width: int = PANEL_WIDTH) -> Image.Image | None:
        """None if the positions of the tokens are not known. title: None: method and budget."""
        tokens = self.tokens(record)
        kept = _kept_mask(record, len(tokens.places)) if tokens is not None else None
        if tokens is None or kept is None:
            return None
        images = _shown(self._question(record), self._model(record["checkpoint"])[1].processor)
        scored = None
        if "scored_tokens" in record:
            of_scorer = set(from_ranges(record["scored_tokens"]))
            scored = [token in of_scorer for token in range(len(kept))]
        name = answer_title(record) if title is None else title
        return overlay_panel(images, tokens.places, Choice(kept, scored=scored), name, width)

    def heat_map(self, records: Sequence[AnswerRecord]) -> Image.Image | None:
        """How often each place of the image is kept, one map for each method. records: of one checkpoint and budget."""
        maps: dict[str, HeatMap] = {}
        for record in tqdm(records, desc="heat maps", leave=False, delay=2):
            tokens = self.tokens(record)
            kept = _kept_mask(record, len(tokens.places)) if tokens is not None else None
            if tokens is not None and kept is not None:
                maps.setdefault(record["method"], HeatMap()).add(tokens.places, kept, sizes=tokens.sizes)
        return draw_heat_maps(maps) if maps else None

    def tokens(self, record: AnswerRecord) -> QuestionTokens | None:
        """None without images, and for a layout of tokens that is not known."""
        key = (record["checkpoint"], record["set"], record["id"])
        if key not in self._tokens:
            self._tokens[key] = self._find_tokens(record["checkpoint"], self._question(record))
        return self._tokens[key]

    def _find_tokens(self, checkpoint: str, question: Question) -> QuestionTokens | None:
        if not question.refs:
            return None
        model, encoder = self._model(checkpoint)
        images = _shown(question, encoder.processor)
        try:
            places = locate_tokens(model, encoder.processor, encoder.batch([question]), [images])[0]
        except UnknownGridError:
            return None
        sizes = [image.size if isinstance(image, Image.Image) else image[0].size for image in images]
        return QuestionTokens(sizes, places)

    def _question(self, record: AnswerRecord) -> Question:
        return self.results.questions[record["set"], record["id"]]

    def _model(self, checkpoint: str) -> tuple[Any, QuestionEncoder]:
        if checkpoint not in self._models:
            found = self.results.prepared.found[checkpoint]
            source = found.source
            model = build_meta_model(source)
            ImageStore.from_config(self.results.prepared.recipe.data).leave_limits_to(found.processor)
            self._models[checkpoint] = (model, QuestionEncoder(found.processor))
        return self._models[checkpoint]


def _shown(question: Question, processor: Any) -> list[ImageOrFrames]:
    return [each.frames if isinstance(each, Clip) else each for each in question.media(processor)]


def _kept_mask(record: AnswerRecord, number: int) -> list[bool] | None:
    """None if the cell has other visual tokens than full tokens have (fewer_pixels)."""
    if record["kept_tokens"] is None:
        return [True] * number if record["kept"] == number else None
    kept = set(from_ranges(record["kept_tokens"]))
    return [token in kept for token in range(number)]


def heat_records(records: Sequence[AnswerRecord], checkpoint: str, budget: str) -> list[AnswerRecord]:
    """Evenly spread questions, the same for each method."""
    of_cell = [record for record in records if (record["checkpoint"], record["budget"]) == (checkpoint, budget)]
    questions = list(dict.fromkeys((record["set"], record["id"]) for record in of_cell))
    chosen = set(questions[:: max(1, -(-len(questions) // _HEAT_QUESTIONS))])
    return [record for record in of_cell if (record["set"], record["id"]) in chosen and record["method"] != FULL]


def captioned_regressions(results: ComparisonResults, most: int) -> list[tuple[str, Image.Image]]:
    """For trackers: (caption, image) of each reduction that lost a question."""
    images, found = TokenImages(results), []
    for checkpoint, _, lost in worst_regressions(results, most):
        for regression in lost:
            for record, image in images.panels(regression):
                if image is not None:
                    answer = f"{record['question']} answer: {record['prediction']!r}"
                    found.append((f"{checkpoint}, {answer_title(record)}: {answer}", image))
    return found
