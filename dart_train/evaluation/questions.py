"""The questions of a set: every answer that a row gives is one, asked with the turns before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..config import QuestionSet, Recipe
from ..data.images import ImageStore
from ..data.issues import BadRowError
from ..data.sample import ImageRef, Sample, Turn
from ..data.sources import DataSource, open_sources


@dataclass(frozen=True)
class Question:
    """turns: up to the question; answers: all that count as right. key: changes with anything that is asked."""

    set: str
    id: str
    kind: str
    turns: tuple[Turn, ...]
    answers: tuple[str, ...]
    key: str
    store: ImageStore

    @property
    def text(self) -> str:
        """What is asked last."""
        return " ".join(part.strip() for part in self.turns[-1].texts if part.strip())

    @property
    def refs(self) -> list[ImageRef]:
        return Sample(self.id, self.turns).images

    @property
    def messages(self) -> list[dict[str, Any]]:
        return Sample(self.id, self.turns).messages()

    def images(self) -> list[Image.Image]:
        """Raises ValueError, naming the question."""
        try:
            return [self.store.open(ref) for ref in self.refs]
        except BadRowError as bad:
            raise ValueError(f"{self.set}, question {self.id}: {bad}") from bad


def open_sets(recipe: Recipe, number: int | None = None) -> list[DataSource]:
    """All sets, under names that tell them apart, or one of them."""
    data, sets = recipe.data, recipe.compare.sets
    return open_sources(
        sets if number is None else sets[number : number + 1],
        ImageStore(None, data.allow_urls, data.max_pixels, data.min_pixels),
    )


def questions_of(source: DataSource) -> Iterator[Question | BadRowError]:
    """In the order of the rows; a row that cannot be asked comes as what is wrong with it. Ids that rows share are
    told apart by the row's number."""
    taken: set[str] = set()
    for index, row in enumerate(source.rows):
        try:
            for question in _of_row(source, row, index):
                fresh = question.id not in taken
                taken.add(question.id)
                yield question if fresh else replace(question, id=f"{question.id} (row {index})")
        except BadRowError as bad:
            yield BadRowError(bad.code, f"{source.row_id(index)}: {bad.message}")


def _of_row(source: DataSource, row: Any, index: int) -> Iterator[Question]:
    sample, more = source.sample(row, index), _fields(source, row)
    places = [i for i, turn in enumerate(sample.turns) if turn.role == "assistant"]
    if len(places) > 1 and "answers" in more:
        raise BadRowError("bad_type", "several answers to one question go with rows of one question")
    for number, place in enumerate(places):
        kinds = more.get("kind")
        kind = kinds[number] if isinstance(kinds, list) and number < len(kinds) else kinds
        answers = _answers(more.get("answers"), sample.turns[place])
        row_id = sample.id if len(places) == 1 else f"{sample.id}#{number + 1}"
        key = _key(Sample(row_id, sample.turns[:place]), answers, source.store)
        yield Question(source.name, row_id, kind if isinstance(kind, str) else "", sample.turns[:place], answers, key,
                       source.store)  # fmt: skip


def _fields(source: DataSource, row: Any) -> dict[str, Any]:
    """`kind` and `answers` of a row, which training does not read."""
    content = row["text"] if list(row) == ["text"] else row
    content = json.loads(content) if isinstance(content, str) else content
    inner = content.get("json")
    content = {**content, **inner} if isinstance(inner, Mapping) else content
    named = {ours: content[theirs] for ours, theirs in source.columns.items() if theirs in content}
    found = {**content, **named}
    if isinstance(found.get("answer"), list) and "answers" not in found:
        found["answers"] = found["answer"]
    return {name: found[name] for name in ("kind", "answers") if found.get(name) is not None}


def _answers(given: Any, turn: Turn) -> tuple[str, ...]:
    """All answers of the row, texts or {answer: text} as VQA writes them; else the one that the turn says."""
    if given is None:
        return (" ".join(part.strip() for part in turn.texts),)
    listed = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    texts = [each.get("answer") if isinstance(each, Mapping) else each for each in listed]
    if not texts or not all(isinstance(text, str | int | float) and not isinstance(text, bool) for text in texts):
        raise BadRowError("bad_type", f"answers: given {str(given)[:80]!r}, expected a list of texts")
    return tuple(str(text) for text in texts)


def _key(sample: Sample, answers: Sequence[str], store: ImageStore) -> str:
    hasher = hashlib.blake2b(digest_size=8)
    hasher.update(json.dumps([sample.digest(), list(answers), store.max_pixels, store.min_pixels]).encode())
    for ref in sample.images:
        hasher.update(_stamp(ref, store).encode())
    return hasher.hexdigest()


def _stamp(ref: ImageRef, store: ImageStore) -> str:
    """A picture that was drawn anew under the same name has another."""
    file = Path(store.root or ".") / (ref.path or "")
    try:
        found = file.stat()
    except (OSError, ValueError):
        return ""  # missing, which is told elsewhere, or not a file at all
    return f"{found.st_size}-{found.st_mtime_ns}" if ref.path else ""


def metrics_of(recipe: Recipe) -> dict[str, QuestionSet]:
    """The settings of each set, by the name that its questions carry."""
    return {source.name: each for source, each in zip(open_sets(recipe), recipe.compare.sets, strict=True)}
