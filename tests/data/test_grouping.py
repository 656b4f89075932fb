"""Batches group rows by their length after the reduction, not before it."""

import json

import numpy as np
import pytest

from dart_train.data.check import row_lengths
from dart_train.data.encoder import Encoder
from dart_train.data.images import ImageStore
from dart_train.data.sampler import DeterministicOrder
from dart_train.data.sources import SourceSpec, open_sources
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
