"""Batches group rows by their length after the reduction, not before it."""

import json
import multiprocessing
import os
import time

import numpy as np
import pytest

from dart_train.data.encoder import Encoder
from dart_train.data.images import ImageStore
from dart_train.data.sampler import DeterministicOrder
from dart_train.data.sources import SourceSpec, open_sources
from dart_train.data.survey import _cache_file, is_surveyed, row_lengths
from dart_train.reduction import DART
from tests.data.conftest import llava_row
from tests.data.images import noise
from tests.zoo import FAMILIES

ENCODER = Encoder(FAMILIES["qwen2_vl"].processor(), 400, "drop")


@pytest.fixture
def sources(tmp_path, image_folder):
    rows = [llava_row(n, f"{n % 3}.png" if n % 2 else None) for n in range(24)]
    for n, row in enumerate(rows):
        row["conversations"][0]["value"] += " Really?" * (n % 7)
    rows[4]["conversations"][0]["value"] += " Really?" * 100  # over max_length
    rows[5]["image"] = "none.png"
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return open_sources([SourceSpec(str(tmp_path / "rows.jsonl"), str(image_folder))])


@pytest.mark.parametrize("workers", [1, 2])
def test_row_lengths_are_those_after_the_reduction(sources, workers):
    (source,) = sources
    lengths = row_lengths(sources, ENCODER, [DART(keep=8)], workers)
    for n, row in enumerate(source.rows):
        sample = source.sample(row, n)
        if n in (4, 5):
            assert lengths[n] == 0  # dropped, and missing
            continue
        features = ENCODER.encode(sample, [source.store.open(ref) for ref in sample.images]).features
        visual = int((features["input_ids"] == ENCODER.processor.image_token_id).sum())
        assert lengths[n] == features["input_ids"].shape[1] - visual + min(8, visual)


def test_row_lengths_are_cached_for_the_same_limits(sources, monkeypatch):
    first = row_lengths(sources, ENCODER)
    monkeypatch.setattr(Encoder, "measure", lambda *_: pytest.fail("measured again"))
    assert np.array_equal(row_lengths(sources, ENCODER), first)
    assert np.array_equal(row_lengths(sources, ENCODER, [DART(keep=8)])[:4] < first[:4], [False, True] * 2)
    with pytest.raises(pytest.fail.Exception):
        row_lengths(sources, Encoder(ENCODER.processor, 300, "drop"))


def test_a_survey_is_known_once_it_is_complete(sources):
    """Also one that several processes made, and not one of which a part is missing."""
    for workers, max_length in ((1, 401), (2, 402)):
        encoder = Encoder(ENCODER.processor, max_length, "drop")
        assert not is_surveyed(sources, encoder)
        row_lengths(sources, encoder, workers=workers)
        assert is_surveyed(sources, encoder) and not is_surveyed(sources, Encoder(ENCODER.processor, 403, "drop"))
    parts = sorted(_cache_file(sources[0], encoder).parent.glob(f"{_cache_file(sources[0], encoder).stem}_*.arrow"))
    assert len(parts) == 2
    parts[0].unlink()
    assert not is_surveyed(sources, encoder)


def test_processes_that_start_together_survey_once(sources, tmp_path):
    """As the ranks of a run do, before they form a group."""
    encoder, marks = Encoder(ENCODER.processor, 404, "drop"), tmp_path / "marks"
    marks.mkdir()
    measure = Encoder.measure

    def marked(self, sample, sizes):
        (marks / f"{os.getpid()}").touch()
        time.sleep(0.02)  # long enough for the other process to start
        return measure(self, sample, sizes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "measure", marked)
        context = multiprocessing.get_context("fork")
        ranks = [context.Process(target=row_lengths, args=(sources, encoder, (), 1)) for _ in range(2)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0] and len(list(marks.iterdir())) == 1


def test_grouping_by_reduced_length_puts_similar_lengths_together(sources):
    lengths = row_lengths(sources, ENCODER, [DART(keep=8)])
    order = DeterministicOrder([24], lengths=lengths, group=4)
    spreads = [np.ptp(lengths[order.rows(start, 4)]) for start in range(0, 24, 4)]
    assert max(spreads) < np.ptp(lengths) / 2


def test_pixel_limits_change_measured_and_encoded_lengths_alike(tmp_path, image_folder):
    noise(56, 56).save(image_folder / "0.png")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(llava_row(0, "0.png")))
    visual = []
    for limits in ({}, {"max_pixels": 32 * 32}, {"min_pixels": 64 * 64}):
        (source,) = open_sources([SourceSpec(str(rows), str(image_folder))], ImageStore(**limits))
        encoder = Encoder(FAMILIES["qwen2_vl"].processor())
        sample = source.sample(source.rows[0], 0)
        features = encoder.encode(sample, [source.store.open(ref) for ref in sample.images]).features
        assert row_lengths([source], encoder)[0] == features["input_ids"].shape[1]
        visual.append(int((features["input_ids"] == encoder.processor.image_token_id).sum()))
    assert visual == [49, 16, 64]
