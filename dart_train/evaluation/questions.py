"""The questions of a set: each answer of a row gives one question, with the turns before it as the prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..config import Recipe
from ..data.images import ImageStore
from ..data.issues import BadRowError
from ..data.sample import ImageRef, Media, Sample, Turn, VideoRef
from ..data.sources import DataSource, open_sources
from ..data.videos import Clip, open_media
from ..models.processors import stacks_frames, takes_pixel_limits

_LIMITS_VERSION = 2  # raise it when images within the same pixel limits may change


@dataclass(frozen=True)
class Question:
    """turns: the prompt, with the question last. answers: all that count as correct. key: a digest of the turns, the
    images, the videos and the answers. prefilled: how many turns have a prefill of their own, whose cache continues
    (see `second_turn`)."""

    set: str
    id: str
    kind: str
    turns: tuple[Turn, ...]
    answers: tuple[str, ...]
    key: str
    store: ImageStore
    prefilled: int = 0

    @property
    def text(self) -> str:
        """The text of the last turn."""
        return " ".join(part.strip() for part in self.turns[-1].texts if part.strip())

    @property
    def refs(self) -> list[Media]:
        """Its images and videos, in order."""
        return Sample(self.id, self.turns).media

    @property
    def videos(self) -> int:
        """How many videos it has."""
        return sum(isinstance(ref, VideoRef) for ref in self.refs)

    @property
    def cost_order(self) -> tuple[int, int, int]:
        """Sorts questions by about their number of tokens."""
        return self.videos, len(self.refs), len(self.text)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return Sample(self.id, self.turns).messages()

    def media(self, processor: Any = None) -> list[Image.Image | Clip]:
        """Images and the frames of videos as `processor` takes them, if one is given: one that resizes to a number of
        pixels itself carries the limits of the recipe (see `ImageStore.leave_limits_to`). Raises a ValueError that
        names the question."""
        store = self.store
        if processor is not None and takes_pixel_limits(processor):
            store = replace(store, min_pixels=None, max_pixels=None)
        if processor is not None and self.videos:
            store = replace(store, equal_frames=stacks_frames(processor))
        try:
            return [open_media(store, ref) for ref in self.refs]
        except BadRowError as bad:
            raise ValueError(f"{self.set}, question {self.id}: {bad}") from bad


def open_sets(recipe: Recipe, number: int | None = None) -> list[DataSource]:
    """All sets of the recipe, under distinct names, or only the set of that number."""
    data, sets = recipe.data, recipe.compare.sets
    images = ImageStore.from_config(data)
    return open_sources(sets if number is None else sets[number : number + 1], images)


def questions_of(source: DataSource) -> Iterator[Question | BadRowError]:
    """In the order of the rows; a bad row yields its error. An id that was used before gets the row number added."""
    used_ids: set[str] = set()
    for index, row in enumerate(source.rows):
        try:
            for question in _of_row(source, row, index):
                is_new = question.id not in used_ids
                used_ids.add(question.id)
                yield question if is_new else replace(question, id=f"{question.id} (row {index})")
        except BadRowError as bad:
            yield BadRowError(bad.code, f"{source.row_id(index)}: {bad.message}")


def _of_row(source: DataSource, row: Any, index: int) -> Iterator[Question]:
    sample, extra = source.sample(row, index), _extra_fields(source, row)
    positions = [i for i, turn in enumerate(sample.turns) if turn.role == "assistant"]
    if len(positions) > 1 and "answers" in extra:
        raise BadRowError("bad_type", "answers is given, expected a row with one question; this one has several")
    for number, position in enumerate(positions):
        kinds = extra.get("kind")
        kind = kinds[number] if isinstance(kinds, list) and number < len(kinds) else kinds
        answers = _answers(extra.get("answers"), sample.turns[position])
        row_id = sample.id if len(positions) == 1 else f"{sample.id}#{number + 1}"
        key = _key(Sample(row_id, sample.turns[:position]), answers, source.store)
        yield Question(
            set=source.name,
            id=row_id,
            kind=kind if isinstance(kind, str) else "",
            turns=sample.turns[:position],
            answers=answers,
            key=key,
            store=source.store,
        )


def _extra_fields(source: DataSource, row: Any) -> dict[str, Any]:
    """`kind` and `answers` of a row; training does not read them."""
    content = row["text"] if list(row) == ["text"] else row
    content = json.loads(content) if isinstance(content, str) else content
    inner = content.get("json")
    content = {**content, **inner} if isinstance(inner, Mapping) else content
    renamed = {ours: content[theirs] for ours, theirs in source.columns.items() if theirs in content}
    found = {**content, **renamed}
    if isinstance(found.get("answer"), list) and "answers" not in found:
        found["answers"] = found["answer"]
    return {name: found[name] for name in ("kind", "answers") if found.get(name) is not None}


def _answers(given: Any, turn: Turn) -> tuple[str, ...]:
    """The row's `answers`: texts, or {answer: text} as in VQA. Without them, the text of the assistant's turn."""
    if given is None:
        return (" ".join(part.strip() for part in turn.texts),)
    listed = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    texts = [each.get("answer") if isinstance(each, Mapping) else each for each in listed]
    if not texts or not all(isinstance(text, str | int | float) and not isinstance(text, bool) for text in texts):
        raise BadRowError("bad_type", f"answers: given {str(given)[:80]!r}, expected a list of texts")
    return tuple(str(text) for text in texts)


def _key(sample: Sample, answers: Sequence[str], store: ImageStore) -> str:
    hasher = hashlib.blake2b(digest_size=8)
    limits: list[Any] = [store.max_pixels, store.min_pixels]
    if any(limits):
        limits.append(_LIMITS_VERSION)
    if sample.videos:
        limits.append(store.video.model_dump())
    hasher.update(json.dumps([sample.digest(), list(answers), *limits]).encode())
    for ref in sample.media:
        files = [ref] if isinstance(ref, ImageRef) else [*ref.frames, *filter(None, [ref.source])]
        for file in files:
            hasher.update(_file_stamp(file, store).encode())
    return hasher.hexdigest()


def _file_stamp(ref: ImageRef, store: ImageStore) -> str:
    """Size and modification time: an image that is replaced under the same name changes the key. Of a folder of frames,
    its own time: it changes with the files in it."""
    file = Path(store.root or ".") / (ref.path or "")
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return ""  # not a file, or missing, which is reported elsewhere
    return f"{stat.st_size}-{stat.st_mtime_ns}" if ref.path else ""
