"""Packing, for documents of any lengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.packing import Packing, gather_rows, pack, pack_pairs

PAD, CLS, SEP = 0, 1, 2
IDS = {0: {}, 1: {"sep_id": SEP}, 2: {"cls_id": CLS, "sep_id": SEP}}
LENGTHS = st.lists(st.one_of(st.integers(0, 12), st.integers(0, 200), st.just(0)), max_size=30)


def corpus(lengths: list[int], first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that are all different, from 10 on, and the offsets; `first` is where the first document begins."""
    offsets = first + np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.arange(10, 10 + offsets[-1]).astype(np.uint32), offsets


def pieces_of(batch: dict[str, np.ndarray]) -> list[list[list[int]]]:
    """The pieces of each row, read place by place: segments are 1, 2, … without a gap, and then there is padding."""
    rows = []
    for tokens, segments, positions in zip(batch["tokens"], batch["segment_ids"], batch["positions"], strict=True):
        pieces: list[list[int]] = []
        for place, (token, segment, position) in enumerate(zip(tokens, segments, positions, strict=True)):
            if segment == 0:
                assert not segments[place:].any() and not positions[place:].any() and (tokens[place:] == PAD).all()
                break
            if segment != len(pieces):
                assert segment == len(pieces) + 1
                pieces.append([])
            assert position == len(pieces[-1])
            pieces[-1].append(int(token))
        rows.append(pieces)
    return rows


def equal(one: Packing, other: Packing) -> bool:
    names = ("piece_start", "piece_length", "row_offsets")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


@given(LENGTHS, st.integers(1, 70), st.sampled_from([0, 1, 2]), st.integers(0, 5))
def test_every_token_stands_in_exactly_one_row(lengths, seq_len, extra, first):
    tokens, offsets = corpus(lengths, first)
    if not sum(lengths) or seq_len <= extra:
        with pytest.raises(ValueError, match="nothing to pack"):
            pack(offsets, seq_len, extra)
        return
    packing = pack(offsets, seq_len, extra)
    assert equal(packing, pack(offsets.copy(), seq_len, extra)), "the same input gives the same rows"
    batch = gather_rows(tokens, packing, np.arange(len(packing)), pad_id=PAD, **IDS[extra])
    assert {array.shape for array in batch.values()} == {(len(packing), seq_len)}
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    rows = pieces_of(batch)
    assert all(rows), "no row is empty"
    assert packing.padding == pytest.approx((batch["segment_ids"] == 0).mean())

    document_of = np.repeat(np.arange(len(lengths)), lengths)  # of each token
    seen: list[int] = []
    for number, row in enumerate(rows):
        standing = set()
        for piece in row:
            assert extra < 2 or piece[0] == CLS
            assert extra < 1 or piece[-1] == SEP
            inner = piece[extra // 2 : len(piece) - (extra + 1) // 2]
            assert inner == list(range(inner[0], inner[0] + len(inner))), "a piece is a stretch of tokens"
            documents = {int(document_of[token - 10 - first]) for token in inner}
            assert len(documents) == 1, "no piece crosses documents"
            standing |= documents
            seen += inner
        assert packing.documents(np.array([number]), offsets).tolist() == sorted(standing)
    assert sorted(seen) == tokens[first:].tolist()
    # A document is cut into as few pieces as there can be.
    longest = seq_len - extra
    assert sum(map(len, rows)) == sum(-(-length // longest) for length in lengths)
    everything = packing.documents(np.arange(len(packing)), offsets)
    assert everything.tolist() == [number for number, length in enumerate(lengths) if length]


@given(LENGTHS.filter(any), st.integers(3, 40), st.data())
def test_rows_are_gathered_alike_in_any_order_and_a_negative_one_is_padding(lengths, seq_len, data):
    tokens, offsets = corpus(lengths)
    packing = pack(offsets, seq_len)
    whole = gather_rows(tokens, packing, np.arange(len(packing)), pad_id=PAD, **IDS[2])
    rows = np.array(data.draw(st.lists(st.integers(-1, len(packing) - 1), max_size=8)), np.int64)
    some = gather_rows(tokens, packing, rows, pad_id=7, **IDS[2])
    for name, array in some.items():
        padding = whole["segment_ids"][rows] == 0
        padding[rows < 0] = True
        expected = np.where(padding, 7 if name == "tokens" else 0, whole[name][rows])
        np.testing.assert_array_equal(array, expected)


@given(st.sampled_from([0, 1, 2]), st.booleans(), st.booleans())
def test_ids_that_were_not_packed_for_are_refused(extra, cls, sep):
    packing = pack(corpus([3, 4])[1], 8, extra)
    ids = {"cls_id": CLS if cls else None, "sep_id": SEP if sep else None}
    if extra == cls + sep:
        gather_rows(corpus([3, 4])[0], packing, np.array([0]), pad_id=PAD, **ids)
        return
    with pytest.raises(ValueError, match="extra places"):
        gather_rows(corpus([3, 4])[0], packing, np.array([0]), pad_id=PAD, **ids)


PAIRS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=40)


@given(PAIRS, st.integers(0, 30), st.integers(0, 30))
def test_both_sides_of_a_pair_stand_in_the_same_row_under_the_same_number(pairs, source_len, target_len):
    sides = [corpus([pair[side] for pair in pairs]) for side in (0, 1)]
    offsets = [offsets for _, offsets in sides]
    if not pairs or min(source_len, target_len) < 2:
        with pytest.raises(ValueError, match="nothing to pack"):
            pack_pairs(*offsets, source_len, target_len)
        return
    *packings, numbers = pack_pairs(*offsets, source_len, target_len)
    *again, again_numbers = pack_pairs(*(each.copy() for each in offsets), source_len, target_len)
    assert all(map(equal, packings, again)) and np.array_equal(numbers, again_numbers)
    assert sorted(numbers.tolist()) == list(range(len(pairs)))
    np.testing.assert_array_equal(packings[0].row_offsets, packings[1].row_offsets)
    for (tokens, own), packing, length in zip(sides, packings, (source_len, target_len), strict=True):
        batch = gather_rows(tokens, packing, np.arange(len(packing)), pad_id=PAD, sep_id=SEP)
        rows = pieces_of(batch)
        assert all(rows) and batch["tokens"].shape == (len(packing), length)
        for row, begin in zip(rows, packing.row_offsets[:-1], strict=True):
            for i, piece in enumerate(row):
                number = numbers[begin + i]
                assert piece == [*tokens[own[number] : own[number + 1]][: length - 1].tolist(), SEP]


@pytest.mark.parametrize("seq_len", [1, 3, 100_000])
def test_a_document_of_a_million_tokens_is_packed(seq_len):
    tokens, offsets = corpus([0, 1_000_000, 1, 0])
    packing = pack(offsets, seq_len, 0)
    batch = gather_rows(tokens, packing, np.arange(len(packing)), pad_id=PAD)
    assert np.array_equal(np.sort(batch["tokens"][batch["segment_ids"] > 0]), tokens.astype(np.int32))
