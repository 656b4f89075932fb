"""Every row looked at once, on all cores: what is wrong with it, and what it costs. Reports go to disk as they come
(`Dataset.map`), so memory does not grow with the number of rows."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from tqdm import tqdm

from ..reducers import kept_by_stages
from .encode import Encoder
from .findings import ERROR, BadRow, Finding
from .pixels import fitted_size
from .sample import Sample
from .sources import Source

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
        return kept_by_stages(stages, self.visual, self.turns, self.behind)[-1] if stages else sum(self.visual)


class Inspector:
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
        except BadRow as bad:
            return RowReport(row_id, [bad.finding])
        sizes, findings = self._pictures(sample)
        if any("\ufffd" in text for turn in sample.turns for text in turn.texts):
            findings.append(Finding("lost_characters"))
        report = RowReport(sample.named(row_id), findings, sample.digest(str(self.source.store.root)))
        if self.encoder is None or any(finding.severity == ERROR for finding in findings):
            return report
        try:
            length = self.encoder.measure(sample, tuple(sizes))
        except BadRow as bad:
            return replace(report, findings=[*findings, bad.finding])
        noted = [*findings, length.note] if length.note else findings
        each: dict[str, Any] = {name: list(getattr(length, name)) for name in ("visual", "turns", "behind")}
        return replace(report, findings=noted, total=length.total, used=length.used, **each)

    def _pictures(self, sample: Sample) -> tuple[list[tuple[int, int]], list[Finding]]:
        store, sizes, findings = self.source.store, [], []
        for ref in sample.images:
            try:
                size, found = store.probe(ref) if self.decode else (store.size(ref), [])
            except BadRow as bad:
                findings.append(bad.finding)
            else:
                sizes.append(fitted_size(size, store.min_pixels, store.max_pixels))
                findings += found
        return sizes, findings


def survey(
    source: Source, encoder: Encoder | None, workers: int = 1, decode: bool = True, progress: bool = True
) -> Iterator[RowReport]:
    """The reports on all rows of a source, in order."""
    inspector = Inspector(source, encoder, decode)
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
        reports = _map(source.rows, Inspector(source, encoder, decode=False), workers, Hasher.hash(told))
        for batch in reports.iter(batch_size=_BATCH):
            for report in _reports(batch):
                found.append(report.used - sum(report.visual) + report.kept(reducers) if report.used else 0)
    return np.array(found, dtype=np.int64)


@contextmanager
def _mapped(rows: Dataset, inspector: Inspector, workers: int, progress: bool) -> Iterator[Dataset]:
    """Reports in a folder that goes away: nothing is cached, as pictures may change where rows do not."""
    shown = not datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if progress else datasets.disable_progress_bars)()
    try:
        with tempfile.TemporaryDirectory(prefix="dart_train_check_") as folder:
            file = str(Path(folder) / "reports.arrow")
            yield _map(rows, inspector, workers, f"check-{os.urandom(8).hex()}", cache_file_name=file)
    finally:
        (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()


def _map(rows: Dataset, inspector: Inspector, workers: int, fingerprint: str, **options: Any) -> Dataset:
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
