"""The order of rows is a pure function of seed, epoch and position: on any number of ranks, and across a kill."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_train.data.sampler import DeterministicOrder, RankBatchSampler, steps_for

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@given(SIZES, st.integers(0, 5), st.integers(1, 9), st.booleans())
def test_every_epoch_shows_every_row_once(sizes, seed, group, grouped):
    total = sum(sizes)
    lengths = 1 + np.arange(total) * 7919 % 101 if grouped else None
    order = DeterministicOrder(sizes, seed=seed, lengths=lengths, group=group)
    for epoch in range(3):
        assert sorted(order.rows(epoch * total, total)) == list(range(total))


@given(st.integers(3, 60), st.integers(0, 3), st.integers(1, 7), st.integers(0, 20))
def test_order_depends_on_seed_and_epoch_only(size, seed, group, epoch):
    lengths = 1 + np.arange(size) % 5
    first, again = (DeterministicOrder([size], seed=seed, lengths=lengths, group=group) for _ in range(2))
    again.epoch(epoch + 3)
    assert first.epoch(epoch).tolist() == again.epoch(epoch).tolist()


def test_other_seeds_and_epochs_give_other_orders():
    orders = {tuple(DeterministicOrder([50], seed=seed).epoch(epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert DeterministicOrder([50], shuffle=False).rows(48, 4) == [48, 49, 0, 1]


@given(st.integers(1, 50), st.sampled_from([0.25, 0.5, 1.5, 2.0, 3.0]))
def test_weights_set_how_often_an_epoch_shows_a_source(size, weight):
    order = DeterministicOrder([size, 10], [weight, 1.0])
    shown = round(size * weight)
    counts = Counter(order.epoch(4).tolist())
    assert len(order) == shown + 10 and sum(counts[row] for row in range(size)) == shown
    assert all(counts[row] == 1 for row in range(size, size + 10))
    over_many = Counter(row for epoch in range(4) for row in order.epoch(epoch) if row < size)
    shows = [over_many[row] for row in range(size)]
    assert max(shows) - min(shows) <= 1  # half of the rows now, the other half next


def test_order_of_a_seed_is_the_same_on_every_machine():
    assert DeterministicOrder([10], seed=1).rows(0, 12) == [5, 9, 2, 1, 4, 8, 0, 3, 6, 7, 3, 1]


def test_groups_have_similar_lengths_and_stay_aligned_over_epochs():
    lengths = np.random.RandomState(0).randint(1, 1000, 103)
    order = DeterministicOrder([103], lengths=lengths, group=8)
    plain = DeterministicOrder([103])
    spreads = {id(o): [np.ptp(lengths[o.rows(p, 8)]) for p in range(0, 800, 8)] for o in (order, plain)}
    assert np.median(spreads[id(order)]) * 4 < np.median(spreads[id(plain)])


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 4))
def test_ranks_together_read_consecutive_positions(size, batch, world, accumulation, start):
    order = DeterministicOrder([size], seed=3)
    steps = start + 4
    ranks = [RankBatchSampler(order, batch, steps, rank, world, accumulation, start) for rank in range(world)]
    batches = zip(*ranks, strict=True)
    read = [row for together in batches for rows in together for row in rows]
    step = batch * world * accumulation
    assert read == order.rows(start * step, 4 * step)


def test_steps_for_covers_the_epochs():
    assert steps_for(DeterministicOrder([100]), 1, 8, 2) == 7 and steps_for(DeterministicOrder([100]), 3, 5, 2, 2) == 15


@given(SIZES, st.integers(0, 5), st.integers(1, 9), st.data())
def test_unusable_rows_are_not_in_the_order(sizes, seed, group, data):
    total = sum(sizes)
    lengths = np.array(data.draw(st.lists(st.integers(0, 2), min_size=total, max_size=total)))
    usable = np.flatnonzero(lengths).tolist()
    if not usable:
        return
    order = DeterministicOrder(sizes, seed=seed, lengths=lengths, group=group)
    for epoch in range(3):
        assert sorted(order.rows(epoch * len(usable), len(usable))) == usable


@pytest.mark.parametrize("worlds", [(2, 2), (2, 1), (1, 4), (4, 2)])
def test_resume_with_other_ranks_repeats_and_omits_no_row(worlds):
    order, read = DeterministicOrder([101], seed=5), []
    for world in worlds:
        start = len(read) // (3 * world)
        assert start * 3 * world == len(read)
        ranks = [RankBatchSampler(order, 3, start + 24 // world, rank, world, 1, start) for rank in range(world)]
        read += [row for step in zip(*ranks, strict=True) for batch in step for row in batch]
    assert len(read) == 144 and sorted(read[:101]) == list(range(101)) and len(set(read[101:])) == 43


RUN = """
import json, sys, time
from torch.utils.data import DataLoader, Dataset
from dart_train.data.sampler import RankBatchSampler, DeterministicOrder

class Rows(Dataset):
    def __getitem__(self, row):
        return row

journal, rank, steps = sys.argv[1], int(sys.argv[2]), 40
done = [json.loads(line) for line in open(journal)]
order = DeterministicOrder([83], seed=7, lengths=[1 + row % 13 for row in range(83)], group=8)
batches = RankBatchSampler(order, 4, steps, rank, 2, start_step=len(done))
with open(journal, "a", buffering=1) as file:
    for rows in DataLoader(Rows(), batch_sampler=batches, num_workers=1, collate_fn=list):
        file.write(json.dumps(rows) + "\\n")
        time.sleep(0.05)
"""


@pytest.mark.slow
@pytest.mark.drill
def test_sigkill_and_resume_read_every_row_once_an_epoch(tmp_path):
    journals = [tmp_path / f"rank{rank}" for rank in range(2)]
    for journal in journals:
        journal.touch()

    def start():
        return [subprocess.Popen([sys.executable, "-c", RUN, str(j), str(r)]) for r, j in enumerate(journals)]

    ranks = start()
    while any(len(journal.read_text().splitlines()) < 9 for journal in journals):
        assert all(rank.poll() is None for rank in ranks)
        time.sleep(0.02)
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
        rank.wait()
    lines = [journal.read_text().split("\n")[:-1] for journal in journals]
    complete = min(map(len, lines))
    assert 9 <= complete < 40
    for journal, kept in zip(journals, lines, strict=True):  # back to the last step that both had finished
        journal.write_text("".join(line + "\n" for line in kept[:complete]))
    assert [rank.wait(120) for rank in start()] == [0, 0]
    both = [[json.loads(line) for line in journal.read_text().splitlines()] for journal in journals]
    read = [row for step in zip(*both, strict=True) for rows in step for row in rows]
    assert len(read) == 40 * 8
    for epoch in range(3):
        assert sorted(read[epoch * 83 : (epoch + 1) * 83]) == list(range(83))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"sizes": [3], "weights": [1, 2]}, "one positive number for each of 1"),
        ({"sizes": [3], "weights": [0]}, "one positive number"),
        ({"sizes": [0]}, "the data set is empty"),
        ({"sizes": [3], "lengths": [1]}, "got 1 for 3 rows"),
        ({"sizes": [3], "lengths": [0, 0, 0]}, "the data set is empty.*3 of them unusable"),
    ],
)
def test_impossible_orders_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        DeterministicOrder(**arguments)
