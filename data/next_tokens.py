"""Rows for a language model: at each place the label is the token behind it.

Either documents packed into rows, where none sees another, or windows: stretches of the whole text.
"""

import numpy as np

from data.corpus import Corpus
from data.masking import uniform
from data.packing import Packing, gather_rows
from data.pipeline import Batch

STREAM = 2  # of the hash that windows are drawn from


def packed_batch(corpus: Corpus, packing: Packing, rows: np.ndarray, *, end_id: int, pad_id: int) -> Batch:
    """The rows with these numbers, each document as `end t1 … tn` with the labels `t1 … tn end`; -1: an empty row.

    Every token of every document is a label once, and so is each end. Where a document was cut, the next piece begins
    with the token before it instead of the end, and the last label of the piece before has no weight.

    Args:
        packing: `pack(corpus.offsets, seq_len, extra=1)`.

    Returns:
        [len(rows), seq_len]: int32 `tokens`, `segment_ids` and `positions` as `gather_rows` gives them, and `labels`;
        float32 `weights`, 1 where the label counts.
    """
    batch = gather_rows(corpus.tokens, packing, rows, pad_id=pad_id, cls_id=end_id)
    batch["labels"] = gather_rows(corpus.tokens, packing, rows, pad_id=pad_id, sep_id=end_id)["tokens"]
    batch["weights"] = (batch["segment_ids"] > 0).astype(np.float32)

    begin = np.flatnonzero((batch["segment_ids"] > 0) & (batch["positions"] == 0))  # flat, in the order of the pieces
    known = rows[rows >= 0]
    chosen = [np.arange(packing.row_offsets[row], packing.row_offsets[row + 1]) for row in known]
    pieces = np.concatenate([np.zeros(0, np.int64), *chosen])
    starts, ends = packing.piece_start[pieces], packing.piece_start[pieces] + packing.piece_length[pieces]
    goes_on, is_cut = (~np.isin(places, corpus.offsets) for places in (starts, ends))
    batch["tokens"].reshape(-1)[begin[goes_on]] = corpus.tokens[starts[goes_on] - 1]
    last = begin + packing.piece_length[pieces]
    batch["weights"].reshape(-1)[last[is_cut]] = 0
    return batch


def window_count(corpus: Corpus, seq_len: int) -> int:
    """How many windows the text has, one behind the other; the last may be shorter.

    Raises:
        ValueError: there are fewer than two tokens.
    """
    if len(corpus.tokens) < 2:
        raise ValueError(f"{len(corpus.tokens)} tokens: no token is behind another")
    return -(-(len(corpus.tokens) - 1) // seq_len)


def window_batch(
    corpus: Corpus, seq_len: int, rows: np.ndarray, *, pad_id: int, epochs: np.ndarray | None = None, seed: int = 0
) -> Batch:
    """Stretches of the text, documents joined: row r begins at r · seq_len; -1 gives an empty row.

    Args:
        epochs: of each row; then the rows begin anywhere instead, drawn by (seed, epoch, row).

    Returns:
        As `packed_batch`.
    """
    last = len(corpus.tokens) - 1  # the last token is a label alone
    begin = rows.astype(np.int64) * seq_len
    if epochs is not None:
        begin = (uniform(seed, epochs, rows, STREAM, 1)[:, 0] * (max(last - seq_len, 0) + 1)).astype(np.int64)
    places = begin[:, None] + np.arange(seq_len)
    inside = (rows >= 0)[:, None] & (places < last)
    places = np.where(inside, places, 0)
    return {
        "tokens": np.where(inside, corpus.tokens[places], pad_id).astype(np.int32),
        "segment_ids": inside.astype(np.int32),
        "positions": np.where(inside, np.arange(seq_len), 0).astype(np.int32),
        "labels": np.where(inside, corpus.tokens[places + 1], pad_id).astype(np.int32),
        "weights": inside.astype(np.float32),
    }
