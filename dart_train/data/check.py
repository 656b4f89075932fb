"""Every row looked at once, on all cores: what is wrong with it, and what it costs. Reports go to disk as they come
(`Dataset.map`), so memory does not grow with the number of rows."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import datasets
import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from tqdm import tqdm

from ..reduction import count_kept_by_stage
from .check_report import Summary
from .encoder import Encoder
from .images import fitted_size
from .issues import ERROR, BadRowError, Finding
from .sample import Sample
from .sources import Source

# `python -m dart_train data check`: every row read before a GPU is paid for.


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


_FEATURES = Features(
    {
        "id": Value("string"),
        "codes": List(Value("string")),
        "messages": List(Value("string")),
        "digest": Value("int64"),
        "total": Value("int32"),
        "used": Value("int32"),
        "visual": List(Value("int32")),
        "turns": List(Value("int32")),
        "behind": List(Value("int32")),
    }
)
_NUMBERS = ("digest", "total", "used", "visual", "turns", "behind")
_BATCH = 500


@dataclass(frozen=True)
class RowReport:
    """`digest` 0: the row could not be read. `total` 0: not measured. `used`: tokens left by max_length. `visual`,
    `turns`, `behind`: of each picture, as in `Length`."""

    id: str
    findings: list[Finding]
    digest: int = 0
    total: int = 0
    used: int = 0
    visual: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)

    def kept(self, stages: Sequence[Any]) -> int:
        """Visual tokens behind the last reduction."""
        return count_kept_by_stage(stages, self.visual, self.turns, self.behind)[-1] if stages else sum(self.visual)


class RowChecker:
    """Looks at one row. `decode`: read whole pictures, to find damage, or only their sizes, to know lengths."""

    def __init__(self, source: Source, encoder: Encoder | None, decode: bool = True) -> None:
        self.source, self.encoder, self.decode = source, encoder, decode

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        report = self.look(row, index)
        codes, messages = [f.code for f in report.findings], [f.message for f in report.findings]
        numbers = {name: getattr(report, name) for name in _NUMBERS}
        return {"id": report.id, "codes": codes, "messages": messages, **numbers}

    def look(self, row: dict[str, Any], index: int) -> RowReport:
        row_id = self.source.row_id(index)
        try:
            sample = self.source.sample(row, index)
        except BadRowError as bad:
            return RowReport(row_id, [bad.finding])
        sizes, findings = self._pictures(sample)
        if any("\ufffd" in text for turn in sample.turns for text in turn.texts):
            findings.append(Finding("lost_characters"))
        report = RowReport(sample.named(row_id), findings, sample.digest(str(self.source.store.root)))
        if self.encoder is None or any(finding.severity == ERROR for finding in findings):
            return report
        try:
            length = self.encoder.measure(sample, tuple(sizes))
        except BadRowError as bad:
            return replace(report, findings=[*findings, bad.finding])
        noted = [*findings, length.note] if length.note else findings
        each: dict[str, Any] = {name: list(getattr(length, name)) for name in ("visual", "turns", "behind")}
        return replace(report, findings=noted, total=length.total, used=length.used, **each)

    def _pictures(self, sample: Sample) -> tuple[list[tuple[int, int]], list[Finding]]:
        store, sizes, findings = self.source.store, [], []
        for ref in sample.images:
            try:
                size, found = store.probe(ref) if self.decode else (store.size(ref), [])
            except BadRowError as bad:
                findings.append(bad.finding)
            else:
                sizes.append(fitted_size(size, store.min_pixels, store.max_pixels))
                findings += found
        return sizes, findings


def survey(
    source: Source, encoder: Encoder | None, workers: int = 1, decode: bool = True, progress: bool = True
) -> Iterator[RowReport]:
    """The reports on all rows of a source, in order."""
    inspector = RowChecker(source, encoder, decode)
    if isinstance(source.rows, Dataset):
        with _mapped(source.rows, inspector, workers, progress) as reports:
            for batch in reports.iter(batch_size=_BATCH):
                yield from _reports(batch)
    else:
        bar = tqdm(source.rows, desc=f"checking {source.name}", unit=" rows", disable=not progress)
        for index, row in enumerate(bar):
            yield from _reports({key: [value] for key, value in inspector(row, index).items()})


def row_lengths(
    sources: Sequence[Source], encoder: Encoder, reducers: Sequence[Any] = (), workers: int = 1
) -> np.ndarray:
    """[rows of all sources] tokens that a row costs: behind max_length and behind the reduction; 0 where it is
    dropped. For grouping by length. Cached by `datasets`, so that a second start, or a second rank, only reads."""
    found = array("q")
    for source in sources:
        told = (source.rows._fingerprint, repr(source.store), source.format, dict(source.columns), encoder.key())
        reports = _map(source.rows, RowChecker(source, encoder, decode=False), workers, Hasher.hash(told))
        for batch in reports.iter(batch_size=_BATCH):
            for report in _reports(batch):
                found.append(report.used - sum(report.visual) + report.kept(reducers) if report.used else 0)
    return np.array(found, dtype=np.int64)


@contextmanager
def _mapped(rows: Dataset, inspector: RowChecker, workers: int, progress: bool) -> Iterator[Dataset]:
    """Reports in a folder that goes away: nothing is cached, as pictures may change where rows do not."""
    shown = not datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if progress else datasets.disable_progress_bars)()
    try:
        with tempfile.TemporaryDirectory(prefix="dart_train_check_") as folder:
            file = str(Path(folder) / "reports.arrow")
            yield _map(rows, inspector, workers, f"check-{os.urandom(8).hex()}", cache_file_name=file)
    finally:
        (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()


def _map(rows: Dataset, inspector: RowChecker, workers: int, fingerprint: str, **options: Any) -> Dataset:
    workers = max(1, min(workers, len(rows)))
    with _single_threaded_tokenizers():
        return rows.map(
            inspector,
            with_indices=True,
            num_proc=workers if workers > 1 else None,
            remove_columns=rows.column_names,
            features=_FEATURES,
            new_fingerprint=fingerprint,
            writer_batch_size=_BATCH,
            desc=f"checking {inspector.source.name}",
            **options,
        )


@contextmanager
def _single_threaded_tokenizers() -> Iterator[None]:
    """The rows are parallel already, and a forked process must not wait for threads that it does not have."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _reports(batch: dict[str, list[Any]]) -> Iterator[RowReport]:
    names = ("id", "codes", "messages", *_NUMBERS)
    for row_id, codes, messages, *numbers in zip(*(batch[name] for name in names), strict=True):
        yield RowReport(row_id, [Finding(*both) for both in zip(codes, messages, strict=True)], *numbers)
