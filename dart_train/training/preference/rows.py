"""Rows with pairs of answers (DPO) or with prompts for rollouts (GRPO), in the formats that people have, as TRL takes
them: `prompt`, `chosen` and `rejected` as messages, `images`, and for rewards all other columns of the row.

| rows | prompt | answers |
| --- | --- | --- |
| TRL | `prompt`: text or messages | `chosen`, `rejected`: text or messages |
| TRL, implicit prompt | the turns that both have in common | `chosen`, `rejected`: complete conversations |
| LLaMA-Factory, ShareGPT | `conversations` of from/value, or `messages` | `chosen`, `rejected`: one turn each |
| RLHF-V, RLAIF-V | `question` (or `query`), `image` | `chosen`, `rejected`: text |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset

from ...config import Data, SourceConfig
from ...data.formats import normalise
from ...data.images import ImageStore
from ...data.issues import BadRowError
from ...data.sample import ImageRef, Sample, Turn
from ...data.sources import DataSource, open_sources

Row = Mapping[str, Any]
_PROMPTS = ("prompt", "conversations", "messages", "question", "query", "instruction")
_IMAGES = ("image", "images")
_USED = {*_PROMPTS, *_IMAGES, "chosen", "rejected", "system", "id"}
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
_NO_VIDEOS = "preference and RL training reads images, not videos"
_ANSWER = "answer"  # of a prompt without one, so that it is read as a conversation


@dataclass(frozen=True)
class PreferenceRow:
    """prompt: its turns, with the images in them. chosen, rejected: None in a row for rollouts. columns: others of the
    row, for rewards; `answer` is the last answer of a conversation whose rollouts replace it."""

    prompt: Sample
    chosen: str | None
    rejected: str | None
    columns: Mapping[str, Any]

    @property
    def images(self) -> list[ImageRef]:
        return [part for turn in self.prompt.turns for part in turn.parts if isinstance(part, ImageRef)]

    def conversations(self) -> list[Sample]:
        """The prompt with each of its answers, which alone is supervised; of a row for rollouts, the prompt."""
        answers = [Turn("assistant", (text,)) for text in (self.chosen, self.rejected) if text is not None]
        turns = [(*self.prompt.turns, answer) for answer in answers] or [self.prompt.turns]
        return [replace(self.prompt, turns=each, last_answer_only=True) for each in turns]

    def together(self) -> Sample:
        """The prompt and both answers, to be compared with other rows."""
        added = [turn for each in self.conversations() for turn in each.turns[len(self.prompt.turns) :]]
        return replace(self.prompt, turns=(*self.prompt.turns, *added))

    def messages(self) -> list[dict[str, Any]]:
        return [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in turn.parts
                ],
            }
            for turn in self.prompt.turns
        ]


def read_row(row: Row, pairs: bool, row_id: str = "") -> PreferenceRow:
    """pairs: the row has a chosen and a rejected answer. Raises BadRowError."""
    if isinstance(row.get("text"), str) and list(row) == ["text"]:
        row = _parsed(row["text"])
    _refuse_videos(row)
    turns = _prompt_turns(row, pairs)
    given = None
    if turns and turns[-1]["role"] == "assistant":  # an answer that rollouts replace
        *turns, last = turns
        given = last["content"] if isinstance(last["content"], str) else None
    answers = [_answer(row, name, len(turns)) for name in ("chosen", "rejected")] if pairs else [_ANSWER]
    images = {name: row[name] for name in _IMAGES if row.get(name) is not None}
    found = [normalise({"messages": [*turns, _turn("assistant", text)], **images}, row_id=row_id) for text in answers]
    prompt = replace(found[0], turns=found[0].turns[:-1])
    if prompt.videos:
        raise BadRowError("unsupported_media", _NO_VIDEOS)
    texts = ["".join(each.turns[-1].texts) for each in found] if pairs else [None, None]
    if pairs and texts[0] == texts[1]:
        raise BadRowError(
            "nothing_supervised", "chosen and rejected are the same text, from which nothing can be learnt"
        )
    columns = {} if pairs else {name: value for name, value in row.items() if name not in _USED}
    if not pairs and given is not None:
        columns.setdefault("answer", given)
    return PreferenceRow(prompt, texts[0], texts[1], columns)


def _refuse_videos(row: Row) -> None:
    name = next((name for name in ("video", "videos") if row.get(name)), None)
    if name is not None:
        raise BadRowError("unsupported_media", f"{_NO_VIDEOS}, and the row has {name}")


def _parsed(text: str) -> Row:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRowError("bad_json", str(error)[:200]) from None
    if not isinstance(row, Mapping):
        raise BadRowError("bad_type", f"a row is {type(row).__name__}; expected a mapping")
    return row


def _prompt_turns(row: Row, pairs: bool) -> list[dict[str, Any]]:
    name = next((name for name in _PROMPTS if row.get(name) is not None), None)
    if name is None and pairs and isinstance(row.get("chosen"), list) and len(row["chosen"]) > 1:
        turns = [_read_turn(turn) for turn in row["chosen"][:-1]]
    elif name is None:
        raise BadRowError("unknown_format", f"no prompt: expected one of {', '.join(_PROMPTS)}")
    elif isinstance(row[name], str):
        turns = [_turn("user", row[name])]
    elif isinstance(row[name], list):
        turns = [_read_turn(turn) for turn in row[name]]
    else:
        raise BadRowError("bad_type", f"{name} is {type(row[name]).__name__}; expected text or a list of turns")
    if row.get("system") and (not turns or turns[0]["role"] != "system"):
        turns = [_turn("system", row["system"]), *turns]
    return _with_marks(turns, row)


def _with_marks(turns: list[dict[str, Any]], row: Row) -> list[dict[str, Any]]:
    """Images that no turn marks come before the first question."""
    number = next((len(v) if isinstance(v, list) else 1 for v in map(row.get, _IMAGES) if v not in (None, "", [])), 0)
    written = json.dumps(turns, default=str)
    if not number or "<image>" in written or '"image' in written:
        return turns
    first = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None:
        return turns
    content = turns[first]["content"]
    marks = "<image>" * number
    content = [marks, *content] if isinstance(content, list) else f"{marks}{content}"
    return [*turns[:first], {**turns[first], "content": content}, *turns[first + 1 :]]


def _answer(row: Row, name: str, prompt: int) -> str:
    """The text of one answer: a text, a turn, or a conversation whose last turn it is."""
    value = row.get(name)
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, Mapping):
        value = _read_turn(value)["content"]
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, Mapping) and part.get("text") is not None]
        value = "".join(map(str, parts))
    if not isinstance(value, str) or not value.strip():
        raise BadRowError("empty_turn", f"{name} has no text")
    return value


def _read_turn(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise BadRowError("bad_type", f"a turn is {type(turn).__name__}; expected a mapping")
    role = turn.get("from") if turn.get("from") is not None else turn.get("role")
    content = turn.get("value") if turn.get("value") is not None else turn.get("content")
    return _turn(_ROLES.get(str(role), str(role)), content)


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


class RowReading:
    """The transform of a data set of row numbers: rows are read, and images opened, when they are needed."""

    def __init__(self, sources: Sequence[DataSource], places: Sequence[tuple[int, int]], pairs: bool) -> None:
        self.sources, self.places, self.pairs = sources, places, pairs

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        rows = [self.read(number) for number in batch["row"]]
        names = {name: None for row in rows for name in row}
        return {name: [row.get(name) for row in rows] for name in names}

    def read(self, number: int) -> dict[str, Any]:
        source, index = self.sources[self.places[number][0]], self.places[number][1]
        found = read_row(source.rows[index], self.pairs, source.row_id(index))
        try:
            images = [source.store.open(ref) for ref in found.images]
        except BadRowError as error:
            raise ValueError(f"{source.label(source.rows[index], index)}: {error}") from error
        made: dict[str, Any] = {"prompt": found.messages(), "images": images, **found.columns}
        if self.pairs:
            for name, text in (("chosen", found.chosen), ("rejected", found.rejected)):
                made[name] = [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
        return made


@dataclass(frozen=True)
class PreferenceRows:
    """dataset: as TRL takes it. skipped: rows that cannot be used, and why."""

    dataset: Dataset
    skipped: tuple[str, ...]

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"rows": [len(self.dataset)], "surveyed": True, "left_out": len(self.skipped)}


def open_rows(specs: Sequence[SourceConfig], data: Data, processor: Any, pairs: bool) -> PreferenceRows:
    """Reads every row once, without its images. Raises ValueError where too many cannot be used."""
    sources = open_sources(specs, ImageStore.from_config(data).leave_limits_to(processor))
    places, skipped = list[tuple[int, int]](), list[str]()
    for number, source in enumerate(sources):
        for index in range(len(source.rows)):
            try:
                read_row(source.rows[index], pairs)
                places.append((number, index))
            except BadRowError as error:
                skipped.append(f"{source.label(source.rows[index], index)}: {error}")
    total = len(places) + len(skipped)
    if not places or (skipped and (data.on_bad_row == "error" or len(skipped) > data.max_bad_fraction * total)):
        listed = "\n".join(f"  {each}" for each in skipped[:8])
        raise ValueError(f"data: {len(skipped)} of {total} rows cannot be used:\n{listed}")
    dataset = Dataset.from_dict({"row": list(range(len(places)))})
    return PreferenceRows(dataset.with_transform(RowReading(sources, places, pairs)), tuple(skipped))
