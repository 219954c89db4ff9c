"""From numbered rows to batches of NumPy arrays, on grain.

Only row numbers flow through the pipeline: they are shuffled anew each epoch, repeated and batched, and a whole batch
is then made in one vectorised call. Batch i is a function of (seed, i) alone, so the order does not depend on threads,
workers or hosts, and a position in it is a small piece of JSON.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rows:
    """A data set as the training loop sees it.

    Attributes:
        count: how many rows there are.
        load: `(rows [n], epochs [n]) -> arrays [n, …]`; a row of -1 stands for an empty row, of weight 0.
        records: `rows [n] -> numbers of the source's records` that stand in them, to name what made a step fail.
        fingerprint: changes whenever a row does.
        summary: the data in a few words, for the run's first lines.
    """

    count: int
    load: Callable[[np.ndarray, np.ndarray], Batch]
    records: Callable[[np.ndarray], np.ndarray]
    fingerprint: str
    summary: str


class TrainBatches:
    """An endless iterator over `(row numbers of the whole batch, this process's share of the arrays)`.

    Epochs follow each other without a gap: a batch may hold the end of one and the start of the next, so no row is
    dropped. `get_state` and `set_state` speak of the next batch that the caller gets, whatever was read ahead.
    """

    def __init__(self, rows: Rows, batch_size: int, *, seed: int, process: int = 0, processes: int = 1):
        self._fingerprint = rows.fingerprint
        share = batch_size // processes
        mine = slice(process * share, (process + 1) * share)

        def load(number: int, chosen: np.ndarray) -> tuple[np.ndarray, Batch]:
            epochs = (number * batch_size + np.arange(batch_size)) // rows.count
            return chosen, rows.load(chosen[mine], epochs[mine])

        numbers = grain.MapDataset.range(rows.count).shuffle(seed=seed % 2**32).repeat()
        self.dataset = numbers.batch(batch_size).map_with_index(load)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        self._iterator = iter(self.dataset.to_iter_dataset(options))

    def __iter__(self) -> Iterator[tuple[np.ndarray, Batch]]:
        return self

    def __next__(self) -> tuple[np.ndarray, Batch]:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position, as JSON."""
        return {"rows": self._fingerprint, "iterator": self._iterator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position.

        Raises:
            ValueError: it belongs to other rows.
        """
        if state["rows"] != self._fingerprint:
            raise ValueError(f"the position belongs to the rows {state['rows']}, these are {self._fingerprint}")
        self._iterator.set_state(state["iterator"])


def eval_batches(
    rows: Rows, batch_size: int, *, limit: int = 0, process: int = 0, processes: int = 1
) -> Iterator[Batch]:
    """Every row once, in order, as batches of one shape; the last is filled up with empty rows.

    Args:
        limit: at most so many batches; 0 for all.
    """
    share = batch_size // processes
    starts = range(0, rows.count, batch_size)
    for start in starts[:limit] if limit else starts:
        chosen = np.arange(start, start + batch_size)
        chosen = np.where(chosen < rows.count, chosen, -1)[process * share : (process + 1) * share]
        yield rows.load(chosen, np.zeros_like(chosen))
