"""Rows in training: bad rows are skipped, logged and counted, and do not change the other rows."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from dart_train.data.collator import Collator
from dart_train.data.dataset import RowDataset, RowReader, RowStream, SkippedRow
from dart_train.data.encoder import Encoded, Encoder
from dart_train.data.sampler import DeterministicOrder, RankBatchSampler
from dart_train.data.sources import SourceSpec, open_sources
from tests.data.conftest import llava_row
from tests.zoo import FAMILIES

PROCESSOR = FAMILIES["llava"].processor()


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def broken_file(tmp_path, image_folder):
    """Nine rows; 2 names no image, 5 has none at all, 7 no answer."""
    rows = [llava_row(n, f"{n % 3}.png") for n in range(9)]
    rows[2]["image"] = "none.png"
    del rows[5]["image"]
    rows[7]["conversations"].pop()
    return write(tmp_path / "broken.jsonl", rows)


def reader_of(*files, images, max_length=None, streaming=False, **options):
    specs = [SourceSpec(str(file), str(images), streaming=streaming) for file in files]
    return RowReader(open_sources(specs), Encoder(PROCESSOR, max_length, "truncate_text"), **options)


def answers(batch):
    """The numbers in the answers of a batch."""
    texts = [PROCESSOR.tokenizer.decode(row[row != -100], skip_special_tokens=True) for row in batch["labels"]]
    return [int(text.strip(" .").split()[-1]) for text in texts if text]


def test_bad_rows_are_skipped_logged_by_id_and_counted(broken_file, image_folder, caplog):
    data = RowDataset(reader_of(broken_file, images=image_folder))
    with caplog.at_level(logging.WARNING):
        rows = [data[n] for n in range(len(data))]
    assert [n for n, row in enumerate(rows) if isinstance(row, SkippedRow)] == [2, 5, 7]
    assert [row.code for row in rows if isinstance(row, SkippedRow)] == ["missing_image", "mark_mismatch", "role_order"]
    assert data.reader.counts == {"rows": 9, "bad": 3, "too_long": 0, "shortened": 0}
    for words in (
        "broken.jsonl:2 (id row-2) skipped: missing_image",
        "broken.jsonl:5 (id row-5) skipped: mark_mismatch",
    ):
        assert words in caplog.text


def test_on_bad_row_error_ends_at_the_first_and_names_it(broken_file, image_folder):
    data = RowDataset(reader_of(broken_file, images=image_folder, on_bad_row="error"))
    assert isinstance(data[1], Encoded)
    with pytest.raises(ValueError, match=r"row broken.jsonl:2 \(id row-2\): missing_image"):
        data[2]


def test_more_bad_rows_than_allowed_end_the_run(tmp_path, image_folder):
    rows = [llava_row(n, "0.png" if n % 10 else "none.png") for n in range(200)]
    file = write(tmp_path / "rows.jsonl", rows)
    data = RowDataset(reader_of(file, images=image_folder, max_bad_fraction=0.05))
    with pytest.raises(ValueError, match=r"6 of 51 rows are bad: more than max_bad_fraction 0.05"):
        [data[n] for n in range(200)]
    enough = RowDataset(reader_of(file, images=image_folder, max_bad_fraction=0.12))
    assert len([enough[n] for n in range(200)]) == 200


def test_bad_row_does_not_move_other_rows(broken_file, image_folder, tmp_path):
    complete = write(tmp_path / "complete.jsonl", [llava_row(n, f"{n % 3}.png") for n in range(9)])
    batches_of = []
    for file in (broken_file, complete):
        data = RowDataset(reader_of(file, images=image_folder, max_bad_fraction=1.0))
        batches = RankBatchSampler(DeterministicOrder(data.sizes, seed=1), 2, 6)
        loader = DataLoader(data, batch_sampler=batches, collate_fn=Collator(PROCESSOR))
        batches_of.append([answers(batch) for batch in loader])
    with_gaps, without = batches_of
    assert [[n for n in batch if n not in (2, 5, 7)] for batch in without] == with_gaps


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_workers_give_the_same_batches_and_share_the_counts(broken_file, image_folder, context):
    def batches(workers):
        data = RowDataset(reader_of(broken_file, images=image_folder, max_bad_fraction=1.0))
        loader = DataLoader(
            data, batch_sampler=RankBatchSampler(DeterministicOrder(data.sizes), 3, 6), collate_fn=Collator(PROCESSOR),
            num_workers=workers, multiprocessing_context=context if workers else None,
        )  # fmt: skip
        return list(loader), data.reader.counts

    (alone, counted), (together, counted_together) = batches(0), batches(2)
    assert counted == counted_together == {"rows": 18, "bad": 6, "too_long": 0, "shortened": 0}
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_max_bad_fraction_ends_the_run_from_a_loader_worker(broken_file, image_folder):
    data = RowDataset(reader_of(broken_file, images=image_folder, max_bad_fraction=0.0))
    loader = DataLoader(data, batch_size=3, collate_fn=Collator(PROCESSOR), num_workers=1)
    with pytest.raises(ValueError, match="more than max_bad_fraction"):
        list(loader)


def test_shortened_rows_are_counted(llava_file, image_folder):
    data = RowDataset(reader_of(llava_file, images=image_folder, max_length=40))
    rows = [data[n] for n in (1, 3, 5)]
    assert all(row.length <= 40 for row in rows) and data.reader.counts["shortened"] == 3


def test_rows_dropped_for_their_length_are_counted_and_are_not_bad_rows(llava_file, image_folder):
    data = RowDataset(reader_of(llava_file, images=image_folder, max_length=60, on_bad_row="error"))
    assert [isinstance(data[n], SkippedRow) for n in range(6)] == [True, False] * 3
    assert data.reader.counts == {"rows": 6, "bad": 0, "too_long": 3, "shortened": 0}


def test_max_length_below_an_image_ends_the_run_instead_of_training_on_nothing(tmp_path, image_folder):
    file = write(tmp_path / "rows.jsonl", [llava_row(n, "0.png") for n in range(100)])
    data = RowDataset(reader_of(file, images=image_folder, max_length=60, max_bad_fraction=0.05))
    with pytest.raises(ValueError, match="6 of 6 rows are bad, 6 of them longer than max_length 60"):
        [data[n] for n in range(100)]


def test_rows_are_numbered_through_the_sources(llava_file, broken_file, image_folder):
    data = RowDataset(reader_of(llava_file, broken_file, images=image_folder))
    assert data.sizes == [6, 9] and len(data) == 15
    assert [(data.locate(n)[0].name, data.locate(n)[1]) for n in (0, 5, 6, 14)] == [
        ("rows.json", 0), ("rows.json", 5), ("broken.jsonl", 0), ("broken.jsonl", 8)]  # fmt: skip
    with pytest.raises(IndexError):
        data.locate(15)


def streamed(files, images, workers=0, world=1, start=0, stop=30, batch=2, weights=(1.0, 1.0)):
    """The numbers of the answers, batch by batch, the ranks' batches in turn."""
    loaders = []
    for rank in range(world):
        reader = reader_of(*files, images=images, streaming=True, max_bad_fraction=1.0)
        stream = RowStream(reader, weights[: len(files)], batch, stop, start, rank, world, seed=3, buffer=8)
        loaders.append(DataLoader(stream, batch_size=batch, collate_fn=Collator(PROCESSOR), num_workers=workers))
    return [answers(batch) for together in zip(*loaders, strict=True) for batch in together]


@pytest.fixture
def two_files(tmp_path, image_folder):
    one = write(tmp_path / "one.jsonl", [llava_row(n, f"{n % 3}.png") for n in range(9)])
    return one, write(tmp_path / "two.jsonl", [llava_row(100 + n) for n in range(6)])


def test_stream_yields_every_row_once_an_epoch(two_files, image_folder):
    rows = [n for batch in streamed(two_files, image_folder) for n in batch]
    expected = [*range(9), *range(100, 106)]
    assert sorted(rows[:15]) == sorted(rows[15:]) == expected and rows[:15] != rows[15:]


@pytest.mark.parametrize("workers, world", [(2, 1), (0, 3), (2, 3)])
def test_stream_order_is_the_same_for_any_number_of_ranks_and_workers(two_files, image_folder, workers, world):
    assert streamed(two_files, image_folder, workers, world) == streamed(two_files, image_folder)


def test_stream_resumes_by_position(two_files, image_folder):
    assert streamed(two_files, image_folder, start=8) == streamed(two_files, image_folder)[4:]
    assert streamed(two_files, image_folder, workers=2, start=20) == streamed(two_files, image_folder)[10:]


def test_weights_set_the_rate_of_a_stream(two_files, image_folder):
    early = [n for batch in streamed(two_files, image_folder, weights=(20.0, 1.0))[:4] for n in batch]
    assert sum(n < 100 for n in early) >= 7


def test_stream_without_rows_is_refused(two_files, image_folder):
    reader = reader_of(two_files[0], images=image_folder, streaming=True)
    reader.sources = [replace(source, rows=source.rows.take(0)) for source in reader.sources]
    with pytest.raises(ValueError, match="the data set is empty"):
        next(iter(RowStream(reader, [1.0], 2, 10)))
