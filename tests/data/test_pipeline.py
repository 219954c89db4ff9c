import dataclasses
import json
import time

import grain
import numpy as np
import pytest
from absl import flags

from data.pipeline import Rows, TrainBatches, eval_batches

flags.FLAGS.mark_as_parsed()  # grain's worker processes ask for it


def numbered(count: int, fingerprint: str = "rows") -> Rows:
    """Rows that say their own number and epoch."""

    def load(rows, epochs):
        return {"row": rows.astype(np.int64), "epoch": epochs.astype(np.int64)}

    return Rows(count, load, records=lambda rows: rows, fingerprint=fingerprint, summary="")


def take(batches, count):
    return [next(batches)[1] for _ in range(count)]


def same(a, b):
    return all(np.array_equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


def test_an_epoch_holds_every_row_once_and_the_next_follows_without_a_gap():
    rows = take(TrainBatches(numbered(10), 4, seed=0), 5)  # 20 rows: two epochs, the third batch in both
    flat = np.concatenate([batch["row"] for batch in rows])
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert np.concatenate([batch["epoch"] for batch in rows]).tolist() == [0] * 10 + [1] * 10
    assert flat[:10].tolist() != flat[10:].tolist(), "each epoch has an order of its own"


def test_the_order_follows_the_seed():
    one, again, other = (take(TrainBatches(numbered(50), 8, seed=seed), 6) for seed in (1, 1, 2))
    assert same(one, again) and not same(one, other)


def test_a_batch_may_be_larger_than_the_data():
    batch = take(TrainBatches(numbered(3), 8, seed=0), 1)[0]
    assert sorted(batch["row"].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2] or len(set(batch["row"][:3])) == 3
    assert batch["epoch"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("done", [0, 1, 5, 13])
def test_the_state_brings_back_the_very_same_batches_also_in_the_middle_of_an_epoch(done):
    batches = TrainBatches(numbered(21), 4, seed=3)
    take(batches, done)
    state = json.loads(json.dumps(batches.get_state()))
    expected = take(batches, 9)
    resumed = TrainBatches(numbered(21), 4, seed=3)
    take(resumed, 2)
    resumed.set_state(state)
    assert same(take(resumed, 9), expected)


def test_the_state_of_other_rows_is_refused():
    state = TrainBatches(numbered(21), 4, seed=3).get_state()
    with pytest.raises(ValueError, match="other"):
        TrainBatches(numbered(21, "other"), 4, seed=3).set_state(state)


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_share_the_batches_of_one(processes):
    whole = take(TrainBatches(numbered(50), 8, seed=1), 5)
    parts = [take(TrainBatches(numbered(50), 8, seed=1, process=p, processes=processes), 5) for p in range(processes)]
    joined = [
        {name: np.concatenate([part[i][name] for part in parts]) for name in ("row", "epoch")}
        for i in range(len(whole))
    ]
    assert same(whole, joined)


@pytest.mark.parametrize("threads", [0, 4])
def test_batches_are_the_same_for_any_number_of_threads(threads):
    expected = take(TrainBatches(numbered(50), 8, seed=1), 5)
    batches = TrainBatches(numbered(50), 8, seed=1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8 if threads else 0)
    batches._iterator = iter(batches.dataset.to_iter_dataset(options))
    assert same(take(batches, 5), expected)


def test_batches_are_the_same_from_worker_processes():
    expected = take(TrainBatches(numbered(50), 8, seed=1), 5)
    batches = TrainBatches(numbered(50), 8, seed=1)
    workers = grain.MultiprocessingOptions(num_workers=2)
    iterator = iter(batches.dataset.to_iter_dataset().mp_prefetch(workers))
    assert same([next(iterator)[1] for _ in range(5)], expected)


def test_what_goes_wrong_in_the_reading_thread_is_raised_at_its_batch_and_nothing_hangs():
    rows = numbered(21)

    def load(chosen, epochs):
        if 17 in chosen:
            raise OSError("the disk is gone")
        return rows.load(chosen, epochs)

    batches = TrainBatches(dataclasses.replace(rows, load=load), 4, seed=3)
    reading = TrainBatches(rows, 4, seed=3)
    order = [next(reading)[0] for _ in range(6)]
    good = next(number for number, chosen in enumerate(order) if 17 in chosen)
    started = time.monotonic()
    assert len(take(batches, good)) == good
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert time.monotonic() - started < 5


def test_an_evaluation_sees_every_row_once_and_fills_the_last_batch_with_nothing():
    batches = list(eval_batches(numbered(10), 4))
    assert [batch["row"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]
    assert all((batch["epoch"] == 0).all() for batch in batches)
    assert len(list(eval_batches(numbered(10), 4, limit=2))) == 2
    shares = [[b["row"].tolist() for b in eval_batches(numbered(10), 4, process=p, processes=2)] for p in range(2)]
    assert shares == [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [-1, -1]]]
