"""Documents of any length into rows of one length, with little padding.

Documents longer than a row are cut into pieces, none is dropped; pieces go into rows by best fit, longest first. The
algorithm works on the histogram of lengths, so its time depends on `seq_len`, hardly on the number of documents.
"""

import dataclasses

import numpy as np

from data.masking import uniform

OPEN = 4096  # rows of pairs that a pair may still go into; older ones are left as full as they are


@dataclasses.dataclass(frozen=True)
class Packing:
    """Which pieces stand in which row.

    Attributes:
        piece_start: int64 [pieces], where each piece begins in the corpus' tokens.
        piece_length: int32 [pieces], in tokens.
        row_offsets: int64 [rows + 1]; the pieces of row r are row_offsets[r] to row_offsets[r + 1].
        seq_len: the length of a row.
        extra: places that a piece takes beside its tokens: 2 for [CLS] and [SEP].
    """

    piece_start: np.ndarray
    piece_length: np.ndarray
    row_offsets: np.ndarray
    seq_len: int
    extra: int

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def padding(self) -> float:
        """The share of all places that holds no token."""
        used = int(self.piece_length.sum(dtype=np.int64)) + self.extra * len(self.piece_length)
        return 1 - used / (len(self) * self.seq_len)

    def documents(self, rows: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The numbers of the documents, by the corpus' offsets, that stand in these rows."""
        spans = [self.piece_start[self.row_offsets[row] : self.row_offsets[row + 1]] for row in rows]
        return np.unique(np.searchsorted(offsets, np.concatenate(spans), side="right") - 1)


def pack(offsets: np.ndarray, seq_len: int, extra: int = 2) -> Packing:
    """Packs the documents tokens[offsets[i]:offsets[i + 1]] into rows; the same input gives the same rows.

    The rows, and pieces of equal length among them, stand in an order of chance: any run of rows is a fair sample.

    Raises:
        ValueError: no document holds a token, or a row has no room for one.
    """
    if seq_len <= extra or offsets[-1] == offsets[0]:
        raise ValueError(f"nothing to pack: {offsets[-1] - offsets[0]} tokens, {seq_len - extra} places in a row")
    starts, lengths = _cut(offsets, seq_len - extra)
    places = lengths + extra
    groups = _compose(np.bincount(places, minlength=seq_len + 1), seq_len)

    # The rows that the groups describe, in random order, as the length at each piece's place.
    compositions = [np.array(composition) for composition, _ in groups]
    group_of_row = np.repeat(np.arange(len(groups)), [count for _, count in groups])
    group_of_row = group_of_row[np.argsort(_chance(len(group_of_row), 0), kind="stable")]
    sizes = np.array([len(composition) for composition in compositions])[group_of_row]
    row_offsets = np.concatenate([[0], np.cumsum(sizes)])
    bases = np.concatenate([[0], np.cumsum([len(composition) for composition in compositions])])
    length_at = np.concatenate(compositions)[_ranges(bases[group_of_row], sizes)]

    # Any piece of the right length may stand at a place: deal them out by length, among equals by chance.
    piece_at = np.empty(len(places), np.int64)
    by_length = np.argsort(places + _chance(len(places), 1), kind="stable")
    piece_at[np.argsort(length_at, kind="stable")] = by_length
    return Packing(starts[piece_at], lengths[piece_at].astype(np.int32), row_offsets, seq_len, extra)


def pack_pairs(
    sources: np.ndarray, targets: np.ndarray, source_len: int, target_len: int
) -> tuple[Packing, Packing, np.ndarray]:
    """Puts pairs into rows by best fit, the largest first; the same input gives the same rows.

    Args:
        sources: offsets [pairs + 1] of the sources' tokens; `targets` those of the targets'.
        source_len: places of a row for the sources, each with one more than it has tokens; `target_len` the same.

    Returns:
        The packings of both sides, with the same pieces in the same rows and one extra place each, the end; and int64
        [pairs], the number of the pair of each piece. What does not fit into a row of its own is cut at its end.

    Raises:
        ValueError: there is no pair, or a row has no room for one.
    """
    rooms = np.array([source_len, target_len])
    if len(sources) < 2 or rooms.min() < 2:
        raise ValueError(f"nothing to pack: {len(sources) - 1} pairs into rows of {source_len} and {target_len}")
    lengths = np.stack([np.diff(sources), np.diff(targets)], axis=1)
    lengths = np.minimum(lengths, rooms - 1)
    places = lengths + 1
    share = places / rooms
    # Among equals, and of the rows in the end, an order of chance: any run of rows is a fair sample.
    chance = _chance(len(lengths), 0)
    order = np.lexsort((chance, -share.sum(1).round(2), -share.max(1).round(2)))

    row_of = np.empty(len(lengths), np.int64)
    left = np.empty((OPEN, 2), np.int64)
    number = np.empty(OPEN, np.int64)  # of the row that each open place holds
    used = rows = 0
    smallest = places.min(0)
    for pair in order:
        need = places[pair]
        fits = (left[:used] >= need).all(1)
        if fits.any():
            candidates = np.flatnonzero(fits)
            at = candidates[((left[candidates] - need) / rooms).sum(1).argmin()]
        else:
            if used < OPEN:
                at, used = used, used + 1
            else:
                at = (left / rooms).min(1).argmin()  # the fullest makes room for a new row
            left[at], number[at] = rooms, rows
            rows += 1
        row_of[pair] = number[at]
        left[at] -= need
        if (left[at] < smallest).any():  # no pair fits any more
            used -= 1
            left[at], number[at] = left[used], number[used]

    row_of = np.argsort(_chance(rows, 1), kind="stable")[row_of]
    pieces = np.lexsort((chance, row_of))
    row_offsets = np.searchsorted(row_of[pieces], np.arange(rows + 1))
    packings = [
        Packing(offsets[:-1][pieces], lengths[pieces, side].astype(np.int32), row_offsets, int(rooms[side]), 1)
        for side, offsets in enumerate((sources, targets))
    ]
    return packings[0], packings[1], pieces


def gather_rows(
    tokens: np.ndarray,
    packing: Packing,
    rows: np.ndarray,
    *,
    pad_id: int,
    cls_id: int | None = None,
    sep_id: int | None = None,
) -> dict[str, np.ndarray]:
    """The rows with these numbers, each piece as [CLS] … [SEP] as far as these have ids; -1 gives a row of padding.

    Raises:
        ValueError: `packing.extra` is another number than there are such ids.

    Returns:
        int32 arrays [len(rows), seq_len]: `tokens`, `segment_ids` (1, 2, … for the pieces of a row, 0 for padding) and
        `positions` (from 0 in each piece).
    """
    if packing.extra != (cls_id is not None) + (sep_id is not None):
        raise ValueError(f"packed with {packing.extra} extra places, but cls_id={cls_id} and sep_id={sep_id}")
    shape = (len(rows), packing.seq_len)
    result = {"tokens": np.full(shape, pad_id, np.int32)}
    result |= {name: np.zeros(shape, np.int32) for name in ("segment_ids", "positions")}

    known = np.flatnonzero(rows >= 0)
    first = packing.row_offsets[rows[known]]
    counts = packing.row_offsets[rows[known] + 1] - first
    pieces = _ranges(first, counts)
    starts, lengths = packing.piece_start[pieces], packing.piece_length[pieces]
    places = lengths + packing.extra

    before = np.concatenate([[0], np.cumsum(places)])  # places used by all pieces before each one
    pieces_before = np.concatenate([[0], np.cumsum(counts)])
    used_in_rows_before = np.repeat(before[pieces_before[:-1]], counts)
    begin = np.repeat(known, counts) * packing.seq_len + before[:-1] - used_in_rows_before  # flat place of each [CLS]

    segment = np.arange(len(pieces)) - np.repeat(pieces_before[:-1], counts) + 1
    within = _ranges(np.zeros_like(places), places)
    target = np.repeat(begin, places) + within
    result["segment_ids"].reshape(-1)[target] = np.repeat(segment, places)
    result["positions"].reshape(-1)[target] = within

    flat = result["tokens"].reshape(-1)
    if cls_id is not None:
        flat[begin] = cls_id
    if sep_id is not None:
        flat[begin + places - 1] = sep_id
    flat[_ranges(begin + (cls_id is not None), lengths)] = tokens[_ranges(starts, lengths)]
    return result


def _cut(offsets: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and length of every piece, in the order of the documents; empty documents give none."""
    lengths = np.diff(offsets)
    pieces = -(-lengths // longest)
    within = _ranges(np.zeros_like(pieces), pieces) * longest
    starts = np.repeat(offsets[:-1], pieces) + within
    return starts, np.minimum(np.repeat(lengths, pieces) - within, longest)


def _compose(histogram: np.ndarray, seq_len: int) -> list[tuple[tuple[int, ...], int]]:
    """Best fit, longest first, over a histogram of lengths: (lengths in a row, how many such rows)."""
    open_groups: list[list[tuple[tuple[int, ...], int]]] = [[] for _ in range(seq_len + 1)]  # by the room that is left
    for length in range(seq_len, 0, -1):
        left = int(histogram[length])
        room = length
        while left:
            while room <= seq_len and not open_groups[room]:
                room += 1
            composition, rows = open_groups[room].pop() if room <= seq_len else ((), left)
            here = room if room <= seq_len else seq_len
            fit = min(here // length, left)  # pieces of this length that one such row takes
            filled = min(rows, left // fit)
            if composition and rows > filled:
                open_groups[here].append((composition, rows - filled))
            open_groups[here - fit * length].append((composition + (length,) * fit, filled))
            left -= fit * filled
    return [group for groups in open_groups for group in groups]


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, … (counts[0] of them), then those of starts[1], …"""
    ends = np.cumsum(counts)
    return np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)


def _chance(count: int, stream: int) -> np.ndarray:
    """[count] numbers from 0 to below 1. A hash, since NumPy's generators may change their order with its version."""
    return uniform(0, np.array([0]), np.array([0]), stream, count)[0]
