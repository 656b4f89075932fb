"""Scenes as rows: LLaVA conversations, in a JSON file or, with the images, in a parquet file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from data.scenes.questions import Question

ROWS_AT_A_TIME = 256

Row = dict[str, Any]


def rows_of(name: str, image: Any, questions: list[Question], group: bool, numbered: bool = False) -> list[Row]:
    """One row per question, or with `group` one conversation about the image. numbered: ids of single questions have
    their number, because there may be several of a kind."""
    if group:
        kinds = [question.kind for question in questions]
        return [{"id": name, "image": image, "conversations": _turns(questions), "kind": kinds}] if questions else []
    ids = [f"{name}-{n}-{one.kind}" if numbered else f"{name}-{one.kind}" for n, one in enumerate(questions)]
    return [
        {"id": row, "image": image, "conversations": _turns([one]), "kind": one.kind}
        for row, one in zip(ids, questions, strict=True)
    ]


def kinds_of(row: Row) -> list[str]:
    """Of all questions of a row."""
    return [row["kind"]] if isinstance(row["kind"], str) else row["kind"]


def _turns(questions: list[Question]) -> list[dict[str, str]]:
    turns = []
    for place, one in enumerate(questions):
        mark = "" if place else "<image>\n"
        turns += [{"from": "human", "value": mark + one.question}, {"from": "gpt", "value": one.answer}]
    return turns


def write_json(path: Path, rows: Iterable[Row]) -> None:
    """A JSON list, one row per line; only one row is in memory at a time."""
    with path.open("w", newline="\n") as file:
        lead = "[\n"
        for row in rows:
            file.write(lead + json.dumps(row))
            lead = ",\n"
        file.write("\n]\n" if lead == ",\n" else "[]\n")


def write_parquet(path: Path, rows: Iterable[Row], group: bool) -> None:
    """With the schema of `datasets`, so that `load_dataset` returns images."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image, List, Value

    text = Value("string")
    turns = List({"from": text, "value": text})
    kind = List(text) if group else text
    schema = Features({"id": text, "image": Image(), "conversations": turns, "kind": kind}).arrow_schema
    left = iter(rows)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while some := list(islice(left, ROWS_AT_A_TIME)):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
