"""`python -m dart_train data check`: every row read before a GPU is paid for."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .encode import Encoder
from .findings import Finding
from .sources import Source
from .summary import Summary
from .survey import survey


def check_rows(
    sources: Sequence[Source],
    encoder: Encoder | None = None,
    reducers: Sequence[Any] = (),
    workers: int = 1,
    out: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """The summary of all sources, as check.json has it. With `out`, check.json and check_rows.jsonl (every finding,
    a line each) are written there. Duplicates are found across sources: validation rows among the training rows."""
    if not sources:
        raise ValueError("nothing to check: give data.train in the recipe, or --rows FILE")
    summary, digests = Summary(reducers), array("q")
    places: list[tuple[int, Source]] = []  # the number of rows before each source
    with _journal(out) as journal:
        for source in sources:
            places.append((len(digests), source))
            for report in survey(source, encoder, workers, progress=progress):
                digests.append(report.digest)
                summary.add(report)
                _write(journal, report.id, report.findings)
        for row, first in _duplicates(digests):
            finding = Finding("duplicate", f"of {_row_id(places, first)}")
            summary.note(_row_id(places, row), finding)
            _write(journal, _row_id(places, row), [finding])
    result = {**summary.to_dict(), "sources": {source.name: str(source.store.root) for source in sources}}
    if out is not None:
        (out / "check.json").write_text(json.dumps(result, indent=1))
    return result


def _duplicates(digests: array[int]) -> Iterator[tuple[int, int]]:
    """(row, the first row with the same digest), in the order of rows; 0 is a row that could not be read."""
    values = np.frombuffer(digests, dtype=np.int64) if digests else np.empty(0, dtype=np.int64)
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    for row in np.flatnonzero((first[which] != np.arange(len(values))) & (values != 0)):
        yield int(row), int(first[which[row]])


def _row_id(places: Sequence[tuple[int, Source]], row: int) -> str:
    start, source = [place for place in places if place[0] <= row][-1]
    return source.row_id(row - start)


def _journal(out: Path | None) -> AbstractContextManager[TextIO | None]:
    if out is None:
        return nullcontext()
    out.mkdir(parents=True, exist_ok=True)
    return (out / "check_rows.jsonl").open("w")


def _write(journal: TextIO | None, row_id: str, findings: Sequence[Finding]) -> None:
    for finding in findings if journal else ():
        line = {"id": row_id, "code": finding.code, "severity": finding.severity, "message": finding.message}
        print(json.dumps(line), file=journal)
