"""Every row is checked once, on all cores: its faults, and its cost in tokens. Used by `python -m dart_train data
check`, and by `survey` for the order of training. Reports are written to disk as they come (`Dataset.map`), so memory
does not grow with the number of rows."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import datasets
import numpy as np
from datasets import Dataset, Features, List, Value
from tqdm import tqdm

from .check_report import CheckSummary, RowReport
from .encoder import Encoder
from .issues import ERROR, BadRowError, RowIssue
from .repeated_pixels import count_repeated_units
from .sample import Sample
from .sources import DataSource
from .videos import MediaShape, media_shape, probe_media

_NUMBERS = ("digest", "total", "used", "visual", "answer_starts", "prompt_tokens_after", "answers")
_FEATURES = Features(
    {
        "id": Value("string"),
        "codes": List(Value("string")),
        "messages": List(Value("string")),
        "digest": Value("int64"),
        "total": Value("int32"),
        "used": Value("int32"),
        "visual": List(Value("int32")),
        "answer_starts": List(Value("int32")),
        "prompt_tokens_after": List(Value("int32")),
        "answers": List(Value("int32")),
    }
)
BATCH = 500


def check_rows(
    sources: Sequence[DataSource],
    encoder: Encoder | None = None,
    reducers: Sequence[Any] = (),
    workers: int = 1,
    out: Path | None = None,
    progress: bool = True,
    max_bad_fraction: float | None = None,
    tower_tolerance: float | None = None,
    checker: MakeChecker | None = None,
) -> dict[str, Any]:
    """The summary of all sources, as in check.json. With `out`, check.json and check_rows.jsonl (one line for every
    issue) are written there. Duplicates are found across sources: validation rows among the training rows.
    tower_tolerance: of a stage in the vision tower that drops units of equal pixels; how many it would drop is counted
    on some of the images. checker: of the rows of one source, where they are not conversations."""
    if not sources:
        raise ValueError("nothing to check: give data.train in the recipe, or --rows FILE")
    summary, digests = CheckSummary(reducers, max_bad_fraction), array("q")
    starts: list[tuple[int, DataSource]] = []  # the number of rows before each source
    with _open_issue_file(out) as file:
        for source in sources:
            starts.append((len(digests), source))
            for report in check_source(source, encoder, workers, progress=progress, checker=checker):
                digests.append(report.digest)
                summary.add(report)
                _write_issues(file, report.id, report.issues)
        for row, first in _duplicates(digests):
            issue = RowIssue("duplicate", f"of {_label(starts, first)}")
            summary.note(_label(starts, row), issue)
            _write_issues(file, _label(starts, row), [issue])
    result = {**summary.to_dict(), "sources": {source.name: str(source.store.root) for source in sources}}
    if tower_tolerance is not None and encoder is not None:
        repeated = count_repeated_units(sources, encoder.processor, tower_tolerance, progress=progress)
        result["repeated_units"] = repeated.to_dict(tower_tolerance)
    if out is not None:
        (out / "check.json").write_text(json.dumps(result, indent=1))
    return result


def _duplicates(digests: array[int]) -> Iterator[tuple[int, int]]:
    """(row, the first row with the same digest), in the order of rows; 0 is a row that could not be read."""
    values = np.frombuffer(digests, dtype=np.int64) if digests else np.empty(0, dtype=np.int64)
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    for row in np.flatnonzero((first[which] != np.arange(len(values))) & (values != 0)):
        yield int(row), int(first[which[row]])


def _label(starts: Sequence[tuple[int, DataSource]], number: int) -> str:
    """The place and the id of row `number` of all sources; of a streamed row, which cannot be read again, the place."""
    start, source = [entry for entry in starts if entry[0] <= number][-1]
    if isinstance(source.rows, Dataset):
        return source.label(source.rows[number - start], number - start)
    return source.row_id(number - start)


def _open_issue_file(out: Path | None) -> AbstractContextManager[TextIO | None]:
    if out is None:
        return nullcontext()
    out.mkdir(parents=True, exist_ok=True)
    return (out / "check_rows.jsonl").open("w")


def _write_issues(file: TextIO | None, row_id: str, issues: Sequence[RowIssue]) -> None:
    for issue in issues if file else ():
        line = {"id": row_id, "code": issue.code, "severity": issue.severity, "message": issue.message}
        print(json.dumps(line), file=file)


class RowChecker:
    """Checks one row. `decode`: read entire images, to find damage, or only their sizes, to know lengths."""

    def __init__(self, source: DataSource, encoder: Encoder | None, decode: bool = True) -> None:
        self.source, self.encoder, self.decode = source, encoder, decode

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        """The report as a row of `_FEATURES`."""
        report = self.check_row(row, index)
        codes, messages = [issue.code for issue in report.issues], [issue.message for issue in report.issues]
        numbers = {name: getattr(report, name) for name in _NUMBERS}
        return {"id": report.id, "codes": codes, "messages": messages, **numbers}

    def check_row(self, row: Mapping[str, Any], index: int) -> RowReport:
        place = self.source.row_id(index)
        try:
            sample = self.source.sample(row, index)
        except BadRowError as bad:
            return RowReport(self.source.label(row, index), [bad.issue])
        sizes, issues = self._check_images(sample)
        if any("\ufffd" in text for turn in sample.turns for text in turn.texts):
            issues.append(RowIssue("lost_characters"))
        report = RowReport(sample.label(place), issues, sample.digest(str(self.source.store.root)))
        if self.encoder is None or any(issue.severity == ERROR for issue in issues):
            return report
        try:
            length = self.encoder.measure(sample, tuple(sizes))
        except BadRowError as bad:
            return replace(report, issues=[*issues, bad.issue])
        return replace(
            report,
            issues=[*issues, length.note] if length.note else issues,
            total=length.total,
            used=length.used,
            visual=list(length.visual),
            answer_starts=list(length.answer_starts),
            prompt_tokens_after=list(length.prompt_tokens_after),
        )

    def _check_images(self, sample: Sample) -> tuple[list[MediaShape], list[RowIssue]]:
        store, sizes, issues = self.source.store, list[MediaShape](), list[RowIssue]()
        for ref in sample.media:
            try:
                size, found = probe_media(store, ref) if self.decode else (media_shape(store, ref), [])
            except BadRowError as bad:
                issues.append(bad.issue)
            else:
                sizes.append(size)
                issues += found
        return sizes, issues


MakeChecker = Callable[[DataSource, "Encoder | None", bool], RowChecker]


def check_source(
    source: DataSource,
    encoder: Encoder | None,
    workers: int = 1,
    decode: bool = True,
    progress: bool = True,
    checker: MakeChecker | None = None,
) -> Iterator[RowReport]:
    """The reports on all rows of a source, in order."""
    check = (checker or RowChecker)(source, encoder, decode)
    if isinstance(source.rows, Dataset):
        with _uncached_reports(source.rows, check, workers, progress) as reports:
            for batch in reports.iter(batch_size=BATCH):
                yield from read_reports(batch)
    else:
        bar = tqdm(source.rows, desc=f"checking {source.name}", unit=" rows", disable=not progress)
        for index, row in enumerate(bar):
            yield from read_reports({key: [value] for key, value in check(row, index).items()})


@contextmanager
def _uncached_reports(rows: Dataset, checker: RowChecker, workers: int, progress: bool) -> Iterator[Dataset]:
    """Reports in a temporary folder: they are not cached, as images may change when rows do not."""
    enabled = not datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if progress else datasets.disable_progress_bars)()
    try:
        with tempfile.TemporaryDirectory(prefix="dart_train_check_") as folder:
            file = str(Path(folder) / "reports.arrow")
            yield map_rows(rows, checker, workers, f"check-{os.urandom(8).hex()}", cache_file_name=file)
    finally:
        (datasets.enable_progress_bars if enabled else datasets.disable_progress_bars)()


def map_rows(rows: Dataset, checker: RowChecker, workers: int, fingerprint: str, **options: Any) -> Dataset:
    """The reports on all rows, for `read_reports`."""
    workers = max(1, min(workers, len(rows)))
    with _single_threaded_tokenizers():
        return rows.map(
            checker,
            with_indices=True,
            num_proc=workers if workers > 1 else None,
            remove_columns=rows.column_names,
            features=_FEATURES,
            new_fingerprint=fingerprint,
            writer_batch_size=BATCH,
            desc=f"checking {checker.source.name}",
            **options,
        )


@contextmanager
def _single_threaded_tokenizers() -> Iterator[None]:
    """Rows are checked in parallel already, and a forked process must not wait for threads that it does not have."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def read_reports(batch: dict[str, list[Any]]) -> Iterator[RowReport]:
    """batch: of the data set that `map_rows` returns."""
    names = ("id", "codes", "messages", *_NUMBERS)
    for row_id, codes, messages, *numbers in zip(*(batch[name] for name in names), strict=True):
        yield RowReport(row_id, [RowIssue(*both) for both in zip(codes, messages, strict=True)], *numbers)
