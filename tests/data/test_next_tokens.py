import numpy as np
import pytest

from data.corpus import Corpus
from data.next_tokens import packed_batch, window_batch, window_count
from data.packing import pack

PAD, END = 0, 1


def corpus_of(*lengths) -> Corpus:
    """Documents of tokens from 10 on, each token once."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Corpus(np.arange(10, 10 + offsets[-1], dtype=np.uint16), offsets, "x", int(offsets[-1]))


def pairs(batch):
    """(row's segment, input, label) of all places that count."""
    counts = batch["weights"] > 0
    return list(zip(batch["tokens"][counts].tolist(), batch["labels"][counts].tolist(), strict=True))


@pytest.mark.parametrize("seq_len", [4, 7, 16])
def test_every_token_and_every_end_is_a_label_once_behind_the_token_before_it(seq_len):
    corpus = corpus_of(5, 0, 1, 30, 3, 6)
    packing = pack(corpus.offsets, seq_len, extra=1)
    batch = packed_batch(corpus, packing, np.arange(len(packing)), end_id=END, pad_id=PAD)
    expected = []
    for begin, end in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True):
        text = [END, *corpus.tokens[begin:end].tolist(), END]
        expected += list(zip(text[:-1], text[1:], strict=True)) if end > begin else []
    assert sorted(pairs(batch)) == sorted(expected)
    assert (batch["weights"] <= (batch["segment_ids"] > 0)).all()
    assert {array.dtype.name for name, array in batch.items() if name != "weights"} == {"int32"}


def test_rows_are_the_same_in_any_company_and_an_empty_row_counts_nothing():
    corpus = corpus_of(5, 2, 30, 3, 6)
    packing = pack(corpus.offsets, 8, extra=1)
    whole = packed_batch(corpus, packing, np.arange(len(packing)), end_id=END, pad_id=PAD)
    some = packed_batch(corpus, packing, np.array([3, -1, 0]), end_id=END, pad_id=PAD)
    for name in whole:
        np.testing.assert_array_equal(some[name][[0, 2]], whole[name][[3, 0]], err_msg=name)
        assert not some[name][1].any(), name
    only_empty = packed_batch(corpus, packing, np.array([-1, -1]), end_id=END, pad_id=PAD)
    assert not only_empty["weights"].any()


@pytest.mark.parametrize("length", [2, 9, 16, 17, 33])
def test_windows_in_order_have_every_token_but_the_first_as_a_label_once(length):
    corpus = corpus_of(*[length // 2, length - length // 2])
    count = window_count(corpus, 8)
    batch = window_batch(corpus, 8, np.arange(count), pad_id=PAD)
    tokens = corpus.tokens.tolist()
    assert pairs(batch) == list(zip(tokens[:-1], tokens[1:], strict=True))
    empty = window_batch(corpus, 8, np.array([-1]), pad_id=PAD)
    assert not any(array.any() for array in empty.values())


def test_drawn_windows_begin_anywhere_and_follow_from_seed_epoch_and_row():
    corpus = corpus_of(100)
    rows = np.arange(500) % 12
    epochs = np.arange(500) // 12
    batch = window_batch(corpus, 8, rows, pad_id=PAD, epochs=epochs, seed=3)
    assert batch["weights"].all()
    np.testing.assert_array_equal(batch["labels"], batch["tokens"] + 1)
    assert set(batch["tokens"][:, 0].tolist()) == set(range(10, 102)), "every place but those too near the end"
    again = window_batch(corpus, 8, rows[77:79], pad_id=PAD, epochs=epochs[77:79], seed=3)
    np.testing.assert_array_equal(again["tokens"], batch["tokens"][77:79])
    other = window_batch(corpus, 8, rows, pad_id=PAD, epochs=epochs, seed=4)
    assert (other["tokens"] != batch["tokens"]).any()


def test_a_text_of_one_token_has_no_window():
    with pytest.raises(ValueError, match="1 tokens"):
        window_count(corpus_of(1), 8)
