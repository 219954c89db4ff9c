import numpy as np
import pytest

from data.packing import gather_rows, pack

PAD, CLS, SEP = 0, 1, 2


def documents(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that are all different, from 10 on, and the offsets."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.arange(10, 10 + offsets[-1]).astype(np.uint32), offsets


def docstring_lengths(count: int) -> np.ndarray:
    return np.maximum(1, np.random.default_rng(0).lognormal(3.6, 1.1, count)).astype(int)


def read_back(batch: dict[str, np.ndarray]) -> list[list[int]]:
    """The pieces of all rows, read token by token as the definition has it."""
    pieces: list[list[int]] = []
    for tokens, segments, positions in zip(batch["tokens"], batch["segment_ids"], batch["positions"], strict=True):
        previous = 0
        for place, (token, segment, position) in enumerate(zip(tokens, segments, positions, strict=True)):
            if segment == 0:
                assert (token, position) == (PAD, 0) and not segments[place:].any()
                break
            if segment != previous:
                assert segment == previous + 1 and position == 0
                pieces.append([])
                previous = segment
            assert position == len(pieces[-1])
            pieces[-1].append(int(token))
    return pieces


@pytest.mark.parametrize("seq_len", [8, 33, 128, 512])
def test_every_token_of_every_document_stands_in_exactly_one_row(seq_len):
    edges = [0, 1, 2, seq_len - 3, seq_len - 2, seq_len - 1, 2 * seq_len, 0, 3 * (seq_len - 2)]
    lengths = [*edges, *docstring_lengths(300)]
    tokens, offsets = documents(lengths)
    packing = pack(offsets, seq_len)
    batch = gather_rows(tokens, packing, np.arange(len(packing)), pad_id=PAD, cls_id=CLS, sep_id=SEP)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == dict.fromkeys(
        ("tokens", "segment_ids", "positions"), ((len(packing), seq_len), np.int32)
    )
    pieces = read_back(batch)
    assert all(piece[0] == CLS and piece[-1] == SEP for piece in pieces)

    expected = []  # document by document, cut into pieces
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        expected += [tokens[i : min(i + seq_len - 2, end)].tolist() for i in range(start, end, seq_len - 2)]
    assert sorted(piece[1:-1] for piece in pieces) == expected


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_cls_and_sep_stand_only_where_they_have_ids(extra):
    tokens, offsets = documents([3, 5, 20])
    packing = pack(offsets, 8, extra)
    ids = {0: {}, 1: {"sep_id": SEP}, 2: {"cls_id": CLS, "sep_id": SEP}}[extra]
    batch = gather_rows(tokens, packing, np.arange(len(packing)), pad_id=PAD, **ids)
    pieces = read_back(batch)
    begin, end = (1, 1) if extra == 2 else (0, extra)
    assert sorted(t for piece in pieces for t in piece[begin : len(piece) - end]) == tokens.tolist()
    assert np.count_nonzero(batch["tokens"] == SEP) == (len(pieces) if extra else 0)
    others = {0: {"cls_id": CLS}, 1: {"cls_id": CLS, "sep_id": SEP}, 2: {"sep_id": SEP}}[extra]
    with pytest.raises(ValueError, match="extra places"):
        gather_rows(tokens, packing, np.arange(1), pad_id=PAD, **others)


@pytest.mark.parametrize("seq_len", [128, 512, 2048])
def test_padding_is_at_most_three_percent_of_docstring_like_rows_and_is_measured_right(seq_len):
    tokens, offsets = documents(docstring_lengths(5_000))
    packing = pack(offsets, seq_len)
    batch = gather_rows(tokens, packing, np.arange(len(packing)), pad_id=PAD, cls_id=CLS, sep_id=SEP)
    assert packing.padding == pytest.approx(np.mean(batch["segment_ids"] == 0), abs=1e-12)
    assert packing.padding <= 0.03


def test_packing_needs_no_more_rows_than_best_fit_document_by_document():
    lengths = docstring_lengths(800).clip(max=62)
    free: list[int] = []
    for length in sorted(lengths + 2, reverse=True):
        fitting = [i for i, room in enumerate(free) if room >= length]
        if fitting:
            free[min(fitting, key=lambda i: free[i])] -= length
        else:
            free.append(64 - length)
    assert len(pack(documents(lengths)[1], 64)) == len(free)


def test_rows_mix_documents_from_the_whole_source():
    packing = pack(documents([30] * 4_000)[1], 64)
    distance = np.abs(np.diff(packing.piece_start.reshape(-1, 2), axis=1)) / 30
    assert 1_000 < distance.mean() < 1_700  # two places drawn at random are 4,000 / 3 apart


def test_packing_is_the_same_each_time():
    offsets = documents(docstring_lengths(2_000))[1]
    one, two = pack(offsets, 128), pack(offsets, 128)
    for name in ("piece_start", "piece_length", "row_offsets"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    # These numbers may not change: a checkpoint's position is a row number.
    assert one.piece_start[:4].tolist() == [69258, 30158, 37661, 25050]


def test_a_negative_row_number_gives_a_row_of_padding():
    tokens, offsets = documents([5, 6, 7])
    packing = pack(offsets, 9)
    ids = {"pad_id": PAD, "cls_id": CLS, "sep_id": SEP}
    mixed = gather_rows(tokens, packing, np.array([-1, 2, -1, 0]), **ids)
    alone = gather_rows(tokens, packing, np.array([2, 0]), **ids)
    for name in mixed:
        np.testing.assert_array_equal(mixed[name][[1, 3]], alone[name])
        assert not mixed[name][[0, 2]].any()
    assert not any(array.any() for array in gather_rows(tokens, packing, np.array([-1]), **ids).values())


def test_a_million_documents_are_packed_without_a_loop_over_them():
    packing = pack(documents(docstring_lengths(1_000_000))[1], 128)  # a loop over documents would be felt here
    assert packing.padding <= 0.03


def test_nothing_to_pack_is_refused():
    with pytest.raises(ValueError, match="nothing to pack"):
        pack(np.array([0, 0, 0]), 128)
    with pytest.raises(ValueError, match="nothing to pack"):
        pack(np.array([0, 3]), 2)
