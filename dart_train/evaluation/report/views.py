"""Pictures of the report: kept tokens over the user's own image, and where on it each method keeps most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from tqdm import tqdm

from ...models.families import TokenPlace, UnknownGridError
from ...models.loading import build_meta_model, read_config
from ...models.token_places import locate_tokens
from ...visualization import Choice, overlay_panel
from ...visualization.heatmap import HeatMap, draw_heat_maps
from ..answer_store import AnswerRecord, from_ranges
from ..comparison import ComparisonResults
from ..prompts import QuestionEncoder
from ..questions import Question

WIDTH = 264  # pixels of a panel
_SAMPLES = 200  # that a heat map is of

Observed = tuple[list[tuple[int, int]], list[TokenPlace]]  # sizes of the pictures, what each token sees


class Views:
    """Where visual tokens lie, by each checkpoint's own processor and configuration; no weights are read."""

    def __init__(self, results: ComparisonResults) -> None:
        self.results = results
        self._bones: dict[str, tuple[Any, QuestionEncoder]] = {}
        self._seen: dict[tuple[str, str, str], Observed | None] = {}

    def seen(self, line: AnswerRecord) -> Observed | None:
        """None where a line's question has no pictures, or where their tokens lie is not known."""
        key = (line["checkpoint"], line["set"], line["id"])
        if key not in self._seen:
            self._seen[key] = self._look(line["checkpoint"], self._question(line))
        return self._seen[key]

    def panel(self, line: AnswerRecord, title: str) -> Image.Image | None:
        seen = self.seen(line)
        if seen is None:
            return None
        kept = self.kept(line, len(seen[1]))
        if kept is None:
            return None
        return overlay_panel(self._question(line).images(), seen[1], Choice(kept), title, WIDTH)

    @staticmethod
    def kept(line: AnswerRecord, number: int) -> list[bool] | None:
        """None where other tokens were made than full tokens are (fewer pixels)."""
        if line["kept_tokens"] is None:
            return [True] * number if line["kept"] == number else None
        mine = set(from_ranges(line["kept_tokens"]))
        return [place in mine for place in range(number)]

    def heat(self, lines: Sequence[AnswerRecord]) -> Image.Image | None:
        """One map a method, of lines at one budget of one checkpoint."""
        maps: dict[str, HeatMap] = {}
        for line in tqdm(lines, desc="heat maps", leave=False, delay=2):
            seen = self.seen(line)
            kept = self.kept(line, len(seen[1])) if seen is not None else None
            if seen is not None and kept is not None:
                maps.setdefault(line["method"], HeatMap()).add(seen[1], kept, sizes=seen[0])
        return draw_heat_maps(maps) if maps else None

    def _look(self, checkpoint: str, question: Question) -> Observed | None:
        if not question.refs:
            return None
        model, prompts = self._of(checkpoint)
        images = question.images()
        try:
            places = locate_tokens(model, prompts.processor, prompts.batch([question]), [images])[0]
            return [image.size for image in images], places
        except UnknownGridError:
            return None

    def _question(self, line: AnswerRecord) -> Question:
        return self.results.questions[line["set"], line["id"]]

    def _of(self, checkpoint: str) -> tuple[Any, QuestionEncoder]:
        if checkpoint not in self._bones:
            found = self.results.prepared.found[checkpoint]
            source = found.source
            model = build_meta_model(read_config(source.path, source.revision, source.trust_remote_code))
            self._bones[checkpoint] = (model, QuestionEncoder(found.processor))
        return self._bones[checkpoint]


def sampled(lines: Sequence[AnswerRecord], checkpoint: str, budget: str) -> list[AnswerRecord]:
    """Of each method the same questions, evenly spread."""
    here = [line for line in lines if line["checkpoint"] == checkpoint and line["budget"] == budget]
    asked = list(dict.fromkeys((line["set"], line["id"]) for line in here))
    chosen = set(asked[:: max(1, -(-len(asked) // _SAMPLES))])
    return [line for line in here if (line["set"], line["id"]) in chosen]
