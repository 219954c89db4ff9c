"""Labelled texts, or pairs of them, as rows: each cut to what one row holds, several short ones in a row."""

import dataclasses

import numpy as np

from data.corpus import Corpus
from data.packing import Packing, gather_rows
from data.pipeline import Batch

TRUNCATIONS = ("head", "tail", "head+tail")


@dataclasses.dataclass(frozen=True)
class Examples:
    """All examples, one behind the other; example i is of record i of the source.

    Attributes:
        tokens: the ids [total], in the type of the corpus: `[CLS] a [SEP]`, of pairs `[CLS] a [SEP] b [SEP]`.
        offsets: int64 [examples + 1]; example i is tokens[offsets[i]:offsets[i + 1]].
        token_types: uint8 [total], 0 for `[CLS] a [SEP]` and 1 for `b [SEP]`; None where there are no pairs.
        cut: how many examples are shorter than their texts.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    token_types: np.ndarray | None
    cut: int

    def __len__(self) -> int:
        return len(self.offsets) - 1


def build_examples(
    first: Corpus, second: Corpus | None = None, *, seq_len: int, truncation: str, cls_id: int, sep_id: int
) -> Examples:
    """Each document of `first`, or each with the document of `second` that has its number, as one example.

    Of a pair that is too long the longer text is cut first, until they are equal, and then both: as the strategy
    `longest_first` of the tokenizers library, which transformers uses.

    Args:
        seq_len: the most tokens that an example may have, [CLS] and [SEP] included.
        truncation: what is kept of a text that is too long: its `head`, its `tail`, or half of each with `head+tail`,
            where the head has the odd token.

    Raises:
        ValueError: the corpora do not have the same number of documents, or `seq_len` has no room for one token.
    """
    texts = [first] if second is None else [first, second]
    lengths = np.stack([np.diff(corpus.offsets) for corpus in texts], axis=1)  # [examples, texts]
    room = seq_len - 1 - len(texts)
    if room < 1:
        raise ValueError(f"a row of {seq_len} has no room for {len(texts)} texts")
    kept = _longest_first(lengths, room)

    # The parts of an example by number: [CLS] a [SEP] are 0 1 2, b [SEP] are 3 4.
    sizes = np.ones((len(lengths), 1 + 2 * len(texts)), np.int64)
    sizes[:, 1::2] = kept
    part = _spread(np.arange(sizes.shape[1], dtype=np.uint8), sizes)
    tokens = np.full(len(part), sep_id, first.tokens.dtype)
    tokens[part == 0] = cls_id
    for i, corpus in enumerate(texts):
        whole, fits = lengths[:, i], kept[:, i]
        tail = {"head": 0 * fits, "tail": fits, "head+tail": fits // 2}[truncation]
        stays = _spread(np.array([True, False, True]), np.stack([fits - tail, whole - fits, tail], axis=1))
        tokens[part == 2 * i + 1] = corpus.tokens[stays]
    return Examples(
        tokens=tokens,
        offsets=np.concatenate([[0], np.cumsum(sizes.sum(1))]),
        token_types=None if second is None else (part > 2).astype(np.uint8),
        cut=int((kept < lengths).any(1).sum()),
    )


def gather_examples(examples: Examples, packing: Packing, rows: np.ndarray, pad_id: int) -> Batch:
    """The rows with these numbers; -1 gives an empty row.

    Args:
        packing: `pack(examples.offsets, seq_len, extra=0)`.

    Raises:
        ValueError: the packing is another one.

    Returns:
        int32 arrays. [len(rows), seq_len]: `tokens`, `segment_ids`, `positions` as `gather_rows` gives them, and of
        pairs `token_types`. [len(rows), most examples in any row], in the order of the segments: `first_positions`, the
        place of each example's [CLS], 0 where there is no example; `example_index`, its number, -1 where there is none.
    """
    if packing.extra or len(packing.piece_start) != len(examples):  # each example fits into a row: it is one piece
        raise ValueError(f"{len(examples)} examples, but {len(packing.piece_start)} pieces, {packing.extra} extra")
    batch = gather_rows(examples.tokens, packing, rows, pad_id=pad_id)
    if examples.token_types is not None:
        batch["token_types"] = gather_rows(examples.token_types, packing, rows, pad_id=0)["tokens"]

    most = int(np.diff(packing.row_offsets).max())
    begin = packing.row_offsets[rows]
    counts = np.where(rows < 0, 0, packing.row_offsets[rows + 1] - begin)
    present = np.arange(most) < counts[:, None]
    pieces = np.where(present, begin[:, None] + np.arange(most), 0)
    lengths = np.where(present, packing.piece_length[pieces], 0)
    index = np.searchsorted(examples.offsets, packing.piece_start[pieces])
    batch["first_positions"] = np.where(present, np.cumsum(lengths, axis=1) - lengths, 0).astype(np.int32)
    batch["example_index"] = np.where(present, index, -1).astype(np.int32)
    return batch


def _longest_first(lengths: np.ndarray, room: int) -> np.ndarray:
    """How many tokens are kept of each text, [examples, texts], so that together they fit into `room`."""
    if lengths.shape[1] == 1:
        return np.minimum(lengths, room)
    first, second = lengths.T
    # Where both are cut, the text that was the longer one has the odd token; of equal ones, the second.
    half = (room + (first > second)) // 2
    kept = np.minimum(first, np.maximum(half, room - second))
    return np.stack([kept, np.minimum(second, room - kept)], axis=1)


def _spread(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """values[0] counts[0, 0] times, values[1] counts[0, 1] times, …; then those of counts[1], and so on."""
    return np.repeat(np.tile(values, len(counts)), counts.ravel())
