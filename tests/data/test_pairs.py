"""Pairs of texts: packed together, read from two files, made from the CLDR."""

import gzip

import numpy as np
import pytest

from data.cldr import open_cldr
from data.packing import gather_rows, pack_pairs
from data.parallel import open_parallel
from data.sources import open_source
from errors import UserError


def offsets_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)])


def drawn(count, seed=0):
    draw = np.random.default_rng(seed)
    targets = draw.integers(2, 40, count)
    return np.maximum(1, (targets * draw.uniform(0.6, 1.2, count)).astype(int)), targets


@pytest.mark.parametrize("count", [1, 7, 3000])
def test_each_pair_stands_once_with_both_sides_in_the_same_row_and_nothing_overflows(count):
    sources, targets = drawn(count)
    of_source, of_target, pairs = pack_pairs(offsets_of(sources), offsets_of(targets), 48, 64)
    assert sorted(pairs) == list(range(count))
    np.testing.assert_array_equal(of_source.row_offsets, of_target.row_offsets)
    for packing, lengths in ((of_source, sources), (of_target, targets)):
        np.testing.assert_array_equal(packing.piece_length, lengths[pairs])
        np.testing.assert_array_equal(packing.piece_start, offsets_of(lengths)[:-1][pairs])
        used = np.add.reduceat(packing.piece_length + 1, packing.row_offsets[:-1])
        assert used.max() <= packing.seq_len
    again = pack_pairs(offsets_of(sources), offsets_of(targets), 48, 64)
    np.testing.assert_array_equal(again[2], pairs)


@pytest.mark.parametrize(("count", "length"), [(20_000, 128), (20_000, 64)])
def test_there_is_little_padding_on_both_sides(count, length):
    sources, targets = drawn(count)
    source_len = round(length * (sources + 1).sum() / (targets + 1).sum())
    of_source, of_target, _ = pack_pairs(offsets_of(sources), offsets_of(targets), source_len, length)
    assert of_source.padding < 0.1 and of_target.padding < 0.1


def test_a_pair_that_is_too_long_is_cut_to_a_row():
    of_source, of_target, _ = pack_pairs(offsets_of([100, 3]), offsets_of([5, 90]), 16, 32)
    assert sorted(of_source.piece_length) == [3, 15] and sorted(of_target.piece_length) == [5, 31]


def test_rows_of_pairs_give_each_target_the_segment_of_its_source():
    sources, targets = drawn(50)
    of_source, of_target, pairs = pack_pairs(offsets_of(sources), offsets_of(targets), 48, 64)
    numbers = [np.repeat(np.arange(len(side)), side) for side in (sources, targets)]  # a token tells its pair
    rows = np.arange(len(of_source))
    seen = gather_rows(numbers[0], of_source, rows, pad_id=-1, sep_id=-2)
    told = gather_rows(numbers[1], of_target, rows, pad_id=-1, cls_id=-3)
    for row in rows:
        for segment in range(1, seen["segment_ids"][row].max() + 1):
            of_pair = [
                set(batch["tokens"][row][batch["segment_ids"][row] == segment].tolist()) - {-2, -3}
                for batch in (seen, told)
            ]
            assert of_pair[0] == of_pair[1] and len(of_pair[0]) == 1


# ---- two files


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.zh").write_text("你好\n谢谢 \n再见", encoding="utf-8")
    with gzip.open(tmp_path / "a.en.gz", "wb") as stream:
        stream.write(b"hello\r\nthank you\nbye\n")
    return f"{tmp_path / 'a.zh'},{tmp_path / 'a.en.gz'}"


def test_lines_of_two_files_are_pairs_by_the_languages_of_their_names(files):
    source = open_source(f"parallel:{files}", text="en")
    assert [source[i]["text"] for i in range(len(source))] == ["hello", "thank you", "bye"]
    assert source[1] == {"text": "thank you", "zh": "谢谢", "en": "thank you"}
    assert source.where(1).endswith("a.en.gz:2")
    assert open_source(f"parallel:{files}", text="zh").fingerprint != source.fingerprint


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda path: (path / "a.zh").write_text("你好\n谢谢\n"), "has 2 lines"),
        (lambda path: (path / "a.zh").write_text("你好\n \n再见\n"), "a.zh:2: is empty"),
        (lambda path: (path / "a.zh").write_bytes(b"a\n\xff\nb\n"), "a.zh:2: is not UTF-8"),
        (lambda path: (path / "a.zh").write_bytes(b""), "is empty"),
        (lambda path: (path / "a.zh").unlink(), "No such file"),
        (lambda path: (path / "a.en.gz").write_bytes(b"plain"), "a.en.gz"),
    ],
)
def test_what_is_wrong_with_two_files_is_told_with_its_place(files, tmp_path, change, message):
    change(tmp_path)
    with pytest.raises(UserError) as error:
        source = open_parallel(files, "zh", "", "config.data.train")
        [source[i] for i in range(len(source))]
    assert message in str(error.value)


@pytest.mark.parametrize("rest", ["", "a.zh", "a.zh,b.zh", "a.zh,b.en,c.de", "a.zh,"])
def test_names_that_are_no_two_languages_are_refused(rest):
    with pytest.raises(UserError):
        open_parallel(rest, "zh", "", "config.data.train")


# ---- cldr


def test_the_cldr_has_what_both_languages_write_each_once():
    source = open_cldr("", "zh", "", "config.data.train")
    records = [source[i] for i in range(len(source))]
    assert len(records) > 20_000
    assert len({(r["kind"], r["zh"], r["en"]) for r in records}) == len(records)
    by_chinese = {r["zh"]: r["en"] for r in records}
    assert by_chinese["德国"] == "Germany" and by_chinese["法语"] == "French" and by_chinese["欧元"] == "Euro"
    assert all(r["text"] == r["zh"].strip() and r["en"].strip() for r in records)
    kinds = {r["kind"] for r in records}
    assert kinds == {"country", "language", "script", "currency", "unit"} | {
        "date", "time", "interval", "number", "measure", "money"
    }  # fmt: skip
    dates = [r for r in records if r["kind"] == "date"]
    assert any("年" in r["zh"] and "月" in r["zh"] for r in dates)


def test_the_cldr_is_the_same_every_time():
    from data import cldr

    first = list(cldr._pairs())
    cldr._pairs.cache_clear()
    assert first == cldr._pairs()


def test_a_column_that_the_cldr_lacks_is_refused():
    with pytest.raises(UserError, match="zh, en"):
        open_source("cldr", text="fr")
