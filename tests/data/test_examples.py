import itertools
import json

import numpy as np
import pytest

from data.corpus import Corpus, tokenize_corpus
from data.examples import TRUNCATIONS, build_examples, gather_examples
from data.packing import pack
from data.sources import open_source, split_holdout
from data.tokenizer import make_tokenizer

PAD, CLS, SEP = 0, 2, 3
IDS = {"cls_id": CLS, "sep_id": SEP}
SEQ_LEN = 12


def corpus(texts: list[list[int]]) -> Corpus:
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    return Corpus(np.array(list(itertools.chain(*texts)), np.uint16), offsets, "", 0)


def random_texts(seed: int, count: int, longest: int = 2 * SEQ_LEN) -> list[list[int]]:
    """Empty ones, such as just fit, and others; the tokens are all different."""
    draw = np.random.default_rng(seed)
    lengths = [0, 0, SEQ_LEN - 2, SEQ_LEN - 1, 4, 5, *draw.integers(0, longest, count - 6)]
    tokens = iter(range(10 + 30_000 * (seed % 2), 65_000))
    return [list(itertools.islice(tokens, length)) for length in lengths]


def cut(text: list[int], room: int, truncation: str) -> list[int]:
    """As the words of the config say it, token by token."""
    kept = list(text)
    for i in range(max(0, len(text) - room)):
        middle = (room + 1) // 2  # the head keeps the odd one
        del kept[{"head": -1, "tail": 0, "head+tail": middle}[truncation]]
        assert len(kept) == len(text) - i - 1
    return kept


def slow_examples(first, second, truncation: str) -> list[list[int]]:
    if second is None:
        return [[CLS, *cut(a, SEQ_LEN - 2, truncation), SEP] for a in first]
    examples = []
    for a, b in zip(first, second, strict=True):
        sizes = [len(a), len(b)]
        shorter = 0 if len(a) <= len(b) else 1
        while sum(sizes) > SEQ_LEN - 3:  # one by one from the longer; of equals, from the one that was the shorter
            sizes[shorter if sizes[0] == sizes[1] else int(np.argmax(sizes))] -= 1
        a, b = cut(a, sizes[0], truncation), cut(b, sizes[1], truncation)
        examples.append([CLS, *a, SEP, *b, SEP])
    return examples


def each(examples) -> list[list[int]]:
    return [examples.tokens[a:b].tolist() for a, b in itertools.pairwise(examples.offsets)]


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_examples_are_those_of_a_plain_loop(truncation, pairs):
    first = random_texts(0, 400)
    second = random_texts(1, 400)[::-1] if pairs else None
    examples = build_examples(
        corpus(first), corpus(second) if pairs else None, seq_len=SEQ_LEN, truncation=truncation, **IDS
    )
    expected = slow_examples(first, second, truncation)
    assert each(examples) == expected and len(examples) == 400
    assert examples.tokens.dtype == np.uint16 and examples.offsets.dtype == np.int64
    whole = [len(a) + len(b) + 3 for a, b in zip(first, second, strict=True)] if pairs else [len(a) + 2 for a in first]
    assert examples.cut == sum(n > SEQ_LEN for n in whole) > 100
    if pairs:
        types = [[int(i > example.index(SEP)) for i in range(len(example))] for example in expected]
        assert examples.token_types.tolist() == list(itertools.chain(*types))
    else:
        assert examples.token_types is None


# Lengths of both texts, seq_len, and how many tokens of each were kept by transformers 5.24 (tokenizers 0.23.3) with
# tokenizer(a, b, truncation="longest_first", max_length=seq_len).
LONGEST_FIRST = [
    (5, 5, 10, 3, 4),
    (5, 5, 9, 3, 3),
    (7, 5, 10, 4, 3),
    (5, 7, 10, 3, 4),
    (9, 2, 10, 5, 2),
    (2, 9, 10, 2, 5),
    (4, 3, 10, 4, 3),
    (3, 4, 9, 3, 3),
    (1, 9, 8, 1, 4),
    (9, 1, 8, 4, 1),
    (2, 2, 4, 0, 1),
]


@pytest.mark.parametrize(("a", "b", "seq_len", "kept_a", "kept_b"), LONGEST_FIRST)
def test_pairs_are_cut_as_transformers_cuts_them(a, b, seq_len, kept_a, kept_b):
    first, second = list(range(10, 10 + a)), list(range(40, 40 + b))
    for truncation, side in (("head", slice(None, None)), ("tail", slice(None, None, -1))):  # truncation_side
        examples = build_examples(corpus([first]), corpus([second]), seq_len=seq_len, truncation=truncation, **IDS)
        expected = [[*text[side][:kept][side]] for text, kept in ((first, kept_a), (second, kept_b))]
        assert each(examples) == [[CLS, *expected[0], SEP, *expected[1], SEP]]


def test_what_fits_exactly_is_not_cut_and_one_token_more_is():
    texts = [[7] * (SEQ_LEN - 2), [7] * (SEQ_LEN - 1), []]
    examples = build_examples(corpus(texts), seq_len=SEQ_LEN, truncation="head", **IDS)
    assert np.diff(examples.offsets).tolist() == [SEQ_LEN, SEQ_LEN, 2] and examples.cut == 1


def test_a_hundred_thousand_long_pairs_are_built_without_a_loop_over_them():
    offsets = np.arange(100_001) * 200
    texts = Corpus(np.zeros(offsets[-1], np.uint16), offsets, "", 0)
    examples = build_examples(texts, texts, seq_len=128, truncation="head+tail", **IDS)  # a loop would be felt here
    assert len(examples.tokens) == 100_000 * 128


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_example_i_is_record_i_of_every_source_and_half_also_where_texts_are_empty(tmp_path, kind):
    pairs = [("the river", "a ship"), ("", "the ship"), ("", ""), ("a river", ""), (" ", "the the")] * 8
    pairs = [(f"{a} {i}" if a.strip() else a, b) for i, (a, b) in enumerate(pairs)]
    path = tmp_path / "pairs"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in pairs))
    else:
        path.write_text("".join(("," if kind == "csv" else "\t").join(row) + "\n" for row in [("a", "b"), *pairs]))
    first, second = (open_source(f"{kind}:{path}", text=column) for column in "ab")
    tokenizer = make_tokenizer("wordpiece:100", first, lambda line: None)
    seen = 0
    for half, other in zip(split_holdout(first, share=0.3), split_holdout(second, share=0.3, by=first), strict=True):
        corpora = [tokenize_corpus(source, tokenizer, lambda line: None) for source in (half, other)]
        ids = {"cls_id": tokenizer.cls_id, "sep_id": tokenizer.sep_id}
        examples = build_examples(*corpora, seq_len=64, truncation="head", **ids)
        texts = [(half[i]["a"], half[i]["b"]) for i in range(len(half))]
        assert [pair in pairs for pair in texts] == [True] * len(examples)
        for example, pair in zip(each(examples), texts, strict=True):
            a, b = (ids.tolist() for ids in tokenizer.encode_batch(pair))
            assert example == [tokenizer.cls_id, *a, tokenizer.sep_id, *b, tokenizer.sep_id]
        seen += len(examples)
    assert seen == len(pairs)


def test_texts_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError):
        build_examples(corpus([[7], [7]]), corpus([[7]]), seq_len=SEQ_LEN, truncation="head", **IDS)
    with pytest.raises(ValueError, match="no room"):
        build_examples(corpus([[7]]), corpus([[7]]), seq_len=3, truncation="head", **IDS)


# ---- rows


@pytest.fixture(params=[False, True], ids=["texts", "pairs"])
def packed(request):
    first = corpus(random_texts(0, 300, longest=SEQ_LEN // 2))
    second = corpus(random_texts(1, 300, longest=SEQ_LEN // 2)) if request.param else None
    examples = build_examples(first, second, seq_len=SEQ_LEN, truncation="head", **IDS)
    return examples, pack(examples.offsets, SEQ_LEN, extra=0)


def test_every_example_stands_whole_in_one_segment_of_one_row_and_at_its_place(packed):
    examples, packing = packed
    batch = gather_examples(examples, packing, np.arange(len(packing)), PAD)
    most = batch["example_index"].shape[1]
    wide, narrow = (len(packing), SEQ_LEN), (len(packing), most)
    names = {"tokens": wide, "segment_ids": wide, "positions": wide, "first_positions": narrow, "example_index": narrow}
    names |= {} if examples.token_types is None else {"token_types": wide}
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: (shape, np.int32) for name, shape in names.items()
    }
    expected, found = each(examples), []
    for row in range(len(packing)):
        segments, index = batch["segment_ids"][row], batch["example_index"][row]
        count = segments.max()
        assert (index[:count] >= 0).all() and (index[count:] == -1).all()
        assert not batch["first_positions"][row, count:].any()
        for k in range(count):
            place = np.flatnonzero(segments == k + 1)
            example = expected[index[k]]
            assert batch["first_positions"][row, k] == place[0]
            assert place.tolist() == list(range(place[0], place[0] + len(example)))
            assert batch["tokens"][row, place].tolist() == example
            assert batch["positions"][row, place].tolist() == list(range(len(example)))
            if examples.token_types is not None:
                border = example.index(SEP) + 1
                assert batch["token_types"][row, place].tolist() == [0] * border + [1] * (len(example) - border)
        padding = segments == 0
        assert (batch["tokens"][row, padding] == PAD).all() and not batch["positions"][row, padding].any()
        if examples.token_types is not None:
            assert not batch["token_types"][row, padding].any()
        found += index[:count].tolist()
    assert sorted(found) == list(range(300))
    assert most == batch["segment_ids"].max() > 1


def test_all_batches_are_as_wide_as_the_fullest_row_and_empty_rows_hold_nothing(packed):
    examples, packing = packed
    whole = gather_examples(examples, packing, np.arange(len(packing)), PAD)
    last = len(packing) - 1
    mixed = gather_examples(examples, packing, np.array([-1, last, -1, 0]), PAD)
    for name, array in mixed.items():
        np.testing.assert_array_equal(array[[1, 3]], whole[name][[last, 0]])
        assert (array[[0, 2]] == (-1 if name == "example_index" else 0)).all()
    alone = gather_examples(examples, packing, np.array([-1]), PAD)
    assert {name: array.shape[1] for name, array in alone.items()} == {k: v.shape[1] for k, v in whole.items()}


def test_the_packing_of_other_examples_is_refused(packed):
    examples, _ = packed
    for other in (pack(examples.offsets, SEQ_LEN, extra=2), pack(examples.offsets, 4, extra=0)):
        with pytest.raises(ValueError, match="pieces"):
            gather_examples(examples, other, np.array([0]), PAD)
