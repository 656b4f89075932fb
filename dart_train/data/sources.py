"""Where rows come from: every kind of file, folder or hub id becomes a `datasets` data set, lazily read.

Loading, caching, memory mapping and streaming are those of Hugging Face `datasets`. No pickle is ever loaded
and no code from a data set is ever run: only the builders named here are used."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TextIO

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError

from ..common.hub import cached_first, require_hub
from .formats import find_id, normalise
from .images import ImageStore
from .issues import BadRowError
from .sample import Sample

_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
_JSON = (".json", ".jsonl", ".ndjson")
Turns = Literal["together", "apart"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CHUNK = 1 << 20  # characters
LONGEST_ROW = 1 << 27
_SPACE = " \t\r\n"
_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")


@dataclass(frozen=True)
class SourceSpec:
    """One entry of a recipe's `data.train` or `data.validation`."""

    path: str
    images: str | None = None
    format: str = "auto"
    weight: float = 1.0
    limit: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str = "train"
    streaming: bool = False
    name: str | None = None


@dataclass(frozen=True)
class AnswerRows:
    """Where there is one row for each answer: the row of the data, and the number of its answer."""

    rows: array[int]
    answers: array[int]


@dataclass(frozen=True)
class DataSource:
    """An opened source: its rows, and how one becomes a `Sample` and its images. by_answer: None where a row is for all
    of its answers."""

    name: str
    rows: Dataset | IterableDataset
    store: ImageStore
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    by_answer: AnswerRows | None = None

    def row_id(self, index: int) -> str:
        if self.by_answer is None:
            return f"{self.name}:{index}"
        return f"{self.name}:{self.by_answer.rows[index]}, answer {self.by_answer.answers[index]}"

    def label(self, row: Mapping[str, Any], index: int) -> str:
        """The place of a row, and its own id if it has one, for messages; also of a row that cannot be used."""
        place, own = self.row_id(index), find_id(_content(row), self.columns)
        return f"{place} (id {own})" if own else place

    def sample(self, row: Mapping[str, Any], index: int) -> Sample:
        """Raises `BadRowError`."""
        sample = normalise(_content(row), self.columns, self.format, self.row_id(index))
        return sample if self.by_answer is None else sample.up_to_answer(self.by_answer.answers[index])

    def may_have_videos(self) -> bool:
        """False only where no row can have one. Reads the texts of the rows, not one row after the other."""
        if isinstance(self.rows, IterableDataset):
            return True
        described = f"{self.rows.features} {dict(self.columns)}"
        if "video" in described or "'type'" in described:  # the latter: parts of a content, each with its type
            return True
        columns = (column for column in self.rows.data.columns if pa.types.is_string(column.type))
        large = (column for column in self.rows.data.columns if pa.types.is_large_string(column.type))
        return any(pc.any(pc.match_substring(column, "video")).as_py() for column in (*columns, *large))

    def one_row_an_answer(self) -> DataSource:
        """The same rows, once for each answer of their conversations. Reads every row, but no image."""
        if isinstance(self.rows, IterableDataset):
            raise ValueError(f"{self.name}: the answers of a streamed row cannot be counted in advance")
        found = AnswerRows(array("q"), array("q"))
        for index, row in enumerate(self.rows):
            answers = self._trained_answers(row, index)
            found.rows.extend(index for _ in answers)
            found.answers.extend(answers)
        return replace(self, rows=self.rows.select(found.rows), by_answer=found)

    def _trained_answers(self, row: Mapping[str, Any], index: int) -> list[int]:
        """The numbers of the answers whose weight is not 0; one for a row that cannot be used: it is reported where it
        is read."""
        try:
            weights = self.sample(row, index).weights
        except BadRowError:
            return [0]
        return [number for number, weight in enumerate(weights) if weight] or [0]


def _content(row: Mapping[str, Any]) -> Any:
    """A JSON row is still text at this point, so that no row can break the loading of the others."""
    return row["text"] if list(row) == ["text"] else row


def open_sources(specs: Sequence[Any], store: ImageStore | None = None, turns: Turns = "together") -> list[DataSource]:
    """All sources of a recipe, under unique names. turns: whether the turns of a conversation are one row, or one row
    each."""
    sources: list[DataSource] = []
    for spec in specs:
        source = open_source(spec, store)
        if turns == "apart":
            source = source.one_row_an_answer()
        taken = sum(re.fullmatch(re.escape(source.name) + r"(#\d+)?", other.name) is not None for other in sources)
        sources.append(replace(source, name=f"{source.name}#{taken + 1}") if taken else source)
    return sources


def open_source(spec: Any, store: ImageStore | None = None) -> DataSource:
    """`spec` is a `SourceSpec` or anything with its fields. `store` gives the limits; the folder is the spec's."""
    rows = _first(_without_decoding(_load(spec)), spec.limit)
    here = Path(spec.path).parent if Path(spec.path).is_file() else Path(spec.path)
    root = Path(spec.images) if spec.images else here if here.exists() else None
    if root is not None and not root.is_dir():
        raise ValueError(f"images: {str(root)!r} is not a folder; give the folder that image names are relative to")
    store = replace(store or ImageStore(), root=root)
    return DataSource(spec.name or Path(spec.path).name, rows, store, spec.format, dict(spec.columns or {}))


def _load(spec: Any) -> Dataset | IterableDataset:
    path = Path(spec.path)
    if not path.exists():
        return _from_hub(spec)
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        return _from_saved(path, spec.split, spec.streaming)
    files = [path] if path.is_file() else _files_of_split(path, spec.split)
    if files[0].suffix.lower() in _JSON:
        return _from_json(files, spec.streaming)
    builder = _BUILDERS.get(files[0].suffix.lower())
    if builder is None:
        raise ValueError(
            f"path: {spec.path!r} is not supported; expected a folder or {', '.join((*_JSON, *_BUILDERS))}"
        )
    names = [str(file.resolve()) for file in files]
    return load_dataset(builder, data_files=names, split="train", streaming=spec.streaming)


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """The data files below a folder, all of one kind; those of the split if the file names contain splits."""
    known = (*_BUILDERS, *_JSON)
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in known and file.is_file())
    for suffix in known:
        files = [file for file in found if file.suffix.lower() == suffix]
        if files:
            return _of_split(files, folder, split)
    raise ValueError(f"{str(folder)!r} contains no data files; expected a saved data set, or files {', '.join(known)}")


def _of_split(files: list[Path], folder: Path, split: str) -> list[Path]:
    words = {file: set(re.split(r"[/_.\-]", str(file.relative_to(folder)).lower())) for file in files}
    chosen = [file for file in files if split.lower() in words[file]]
    unnamed = [file for file in files if not words[file] & set(_SPLITS)]
    if chosen or (split == "train" and unnamed):
        return chosen or unnamed
    names = ", ".join(file.name for file in files[:5])
    raise ValueError(
        f"split {split!r} is not in {str(folder)!r}, which contains {names}; put the split in the file names"
    )


def _from_json(files: list[Path], streaming: bool) -> Dataset | IterableDataset:
    digests = ["" if streaming else _digest(file) for file in files]  # streamed rows are not cached
    arguments = {"files": [str(file.resolve()) for file in files], "digests": digests}
    if next(json_rows(**arguments), None) is None:
        raise ValueError(f"path: {str(files[0])!r} contains no rows")
    features = datasets.Features({"text": datasets.Value("large_string")})
    kind = IterableDataset if streaming else Dataset
    return kind.from_generator(json_rows, features=features, gen_kwargs=arguments)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _from_saved(path: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    saved = load_from_disk(str(path))
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise ValueError(f"split {split!r} is not in {str(path)!r}; it contains {', '.join(saved)}")
        saved = saved[split]
    return saved.to_iterable_dataset() if streaming else saved


def _from_hub(spec: Any) -> Dataset | IterableDataset:
    if not _HUB_ID.fullmatch(spec.path):
        raise ValueError(f"path: {spec.path!r} does not exist, and is not a hub id (owner/name)")
    try:
        if spec.streaming:
            require_hub(spec.path)
            return load_dataset(spec.path, split=spec.split, streaming=True)
        return cached_first(lambda: load_dataset(spec.path, split=spec.split), spec.path)
    except (ConnectionError, OSError, DatasetNotFoundError) as error:
        offline = datasets.config.HF_HUB_OFFLINE or isinstance(error, ConnectionError)
        reason = "there is no network (or HF_HUB_OFFLINE is set)" if offline else f"the hub answers: {error}"
        raise ValueError(
            f"path: {spec.path!r} is not a local file or folder, and cannot be read as a hub id: {reason}; "
            "download it first and give its folder"
        ) from error


def _without_decoding(rows: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Images remain bytes or paths: `datasets` would open any path that a row names; `ImageStore` does not."""
    if isinstance(rows, IterableDataset):
        return rows.decode(False)
    for column, feature in list(rows.features.items()):
        rows.info.features[column] = _undecoded(feature)
    return rows


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, dict):
        return {name: _undecoded(inner) for name, inner in feature.items()}
    feature = copy.copy(feature)
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        feature.feature = _undecoded(feature.feature)
    elif hasattr(feature, "decode"):
        feature.decode = False
    return feature


def _first(rows: Dataset | IterableDataset, limit: int | None) -> Dataset | IterableDataset:
    if limit is None:
        return rows
    return rows.take(limit) if isinstance(rows, IterableDataset) else rows.select(range(min(limit, len(rows))))


def json_rows(files: list[str], digests: list[str]) -> Iterator[dict[str, str]]:
    """{"text": one row} for each row of JSON Lines files and of files that contain one list, as LLaVA's do. `digests`
    of the files are part of the key under which `datasets` caches the rows.

    Rows remain text: they may differ in types from line to line, and a columnar loader refuses the entire file for
    one odd row. As text, an odd row is one issue."""
    for path in files:
        with open(path, encoding="utf-8-sig", errors="replace", newline="\n") as file:
            for text in _list_items(file) if _starts_a_list(file) else file:
                if text.strip():
                    yield {"text": text.strip()}


def _starts_a_list(file: TextIO) -> bool:
    head = file.read(CHUNK).lstrip()
    file.seek(0)
    if not head.startswith("["):
        return False
    first_line, _, rest = head.partition("\n")  # a list on one line may end with a line break, as `jq -c` writes it
    lists_in_lines = first_line.rstrip().endswith("]") and bool(rest.strip()) and _is_json(first_line)
    return not lists_in_lines


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _list_items(file: TextIO) -> Iterator[str]:
    """The items of a top-level list as text, with one item and one chunk in memory. The first item that cannot be
    parsed is yielded as it is, shortened, and is the last: nothing after it can be trusted to be a row."""
    buffer, start, decoder = file.read(CHUNK).lstrip()[1:], 0, json.JSONDecoder()
    while True:
        start = _skip(buffer, start)
        if start < len(buffer) and buffer[start] == "]":
            return
        end = _item_end(decoder, buffer, start)
        if end is not None and _skip(buffer, end) < len(buffer):  # what follows shows that the item is complete
            yield buffer[start:end]
            start = end
            continue
        more = file.read(max(CHUNK, len(buffer) - start)) if len(buffer) - start < LONGEST_ROW else ""
        if not more:
            yield buffer[start : start + 200] or "[ without ]"
            return
        buffer, start = buffer[start:] + more, 0


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE + ",":
        position += 1
    return position


def _item_end(decoder: json.JSONDecoder, text: str, start: int) -> int | None:
    try:
        return decoder.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None
