import numpy as np
import pytest

from data.sources import KINDS, open_source, split_holdout
from errors import UserError


class Documents:
    """A source in memory that counts how often it is read."""

    def __init__(self, texts: list[str]):
        self.name, self.fingerprint, self.texts, self.reads = "documents", "abc", texts, 0

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self.texts):
            raise IndexError(index)
        self.reads += 1
        return {"text": self.texts[index], "number": index}

    def where(self, index: int) -> str:
        return f"documents:{index}"


class Unopened(Documents):
    """A source that may not be asked yet even how many records it has: that means looking for them."""

    def __len__(self) -> int:
        raise AssertionError("looked for records")


TEXTS = [f"document {i % 700}" for i in range(1_000)]  # 300 of them stand there twice


def texts_of(source) -> list[str]:
    return [source[i]["text"] for i in range(len(source))]


@pytest.mark.parametrize(
    ("spec", "offered"),
    [
        ("pydoc", "Did you mean pydocs?"),
        ("pydocs:x", "Did you mean pydocs?"),
        ("json:a.jsonl", "Did you mean jsonl:a.jsonl?"),
        ("tsv", "Did you mean tsv:PATH?"),
        ("books/a.txt", "Did you mean text:books/a.txt?"),
        ("/data/2024:01/a.txt", "Did you mean text:/data/2024:01/a.txt?"),
        ("a.txt", "Did you mean text:a.txt?"),
        ("nothing like it", ""),
        ("", ""),
    ],
)
def test_an_unknown_kind_is_refused_with_the_nearest_and_all_kinds(spec, offered):
    with pytest.raises(UserError) as caught:
        open_source(spec, field="config.data.valid")
    assert caught.value.field == "config.data.valid"
    assert offered in caught.value.mend and ", ".join(KINDS) in caught.value.mend


def test_an_unknown_way_to_part_documents_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo")
    with pytest.raises(UserError, match="config.data.document.*sentence"):
        open_source(f"text:{tmp_path}/a.txt", document="sentence")


@pytest.mark.parametrize("rule", ["hash", "tail"])
def test_every_record_is_on_exactly_one_side_and_whole(rule):
    source = Documents(TEXTS)
    sides = [[side[i] for i in range(len(side))] for side in split_holdout(source, rule, 0.1)]
    numbers = [record["number"] for side in sides for record in side]
    assert sorted(numbers) == list(range(1_000))
    assert all(record["text"] == TEXTS[record["number"]] for side in sides for record in side)
    assert [list(side) for side in split_holdout(source, rule, 0.1)] == sides  # a for loop ends, too


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_split_by_hash_holds_out_about_the_share_and_keeps_equal_documents_together(share):
    train, held_out = split_holdout(Documents(TEXTS), "hash", share)
    assert 0.6 * share < len(held_out) / 1_000 < 1.5 * share
    assert set(texts_of(train)).isdisjoint(texts_of(held_out))


def test_a_split_by_hash_does_not_depend_on_order_place_or_spacing():
    held_out = set(texts_of(split_holdout(Documents(TEXTS))[1]))
    shuffled = [TEXTS[i] for i in np.random.default_rng(0).permutation(len(TEXTS))]
    assert set(texts_of(split_holdout(Documents(shuffled))[1])) == held_out
    spaced = [text.replace(" ", " \n ") + "\n" for text in TEXTS]
    assert {" ".join(text.split()) for text in texts_of(split_holdout(Documents(spaced))[1])} == held_out
    more = Documents(TEXTS[:500] + ["another", "and another"])
    assert set(texts_of(split_holdout(more)[1])) <= held_out | {"another", "and another"}


def test_the_tail_is_the_last_documents():
    train, held_out = split_holdout(Documents(TEXTS), "tail", 0.1)
    assert texts_of(train) == TEXTS[:900] and texts_of(held_out) == TEXTS[900:]


def test_splitting_reads_nothing_until_a_side_is_used():
    source = Documents(TEXTS)
    sides = [side for rule in ("hash", "tail") for share in (0.1, 0.2) for side in split_holdout(source, rule, share)]
    assert source.reads == 0
    assert len({side.fingerprint for side in sides} | {source.fingerprint}) == 9
    assert [side.fingerprint for side in split_holdout(source, "hash", 0.1)] == [side.fingerprint for side in sides[:2]]
    assert source.reads == 0
    len(sides[0]), len(sides[1])
    assert source.reads == 1_000  # both sides from one pass


@pytest.mark.parametrize("rule", ["hash", "tail"])
def test_a_record_is_named_as_in_the_whole_source(rule):
    for side in split_holdout(Documents(TEXTS), rule, 0.1):
        assert all(side.where(i) == f"documents:{side[i]['number']}" for i in range(len(side)))


@pytest.mark.parametrize("rule", ["hash", "tail"])
def test_the_second_texts_of_pairs_fall_on_the_sides_of_the_first(rule):
    first, second = Documents(TEXTS), Documents([f"another text {i}" for i in range(1_000)])
    sides = list(zip(split_holdout(first, rule, 0.1), split_holdout(second, rule, 0.1, by=first), strict=True))
    assert first.reads == second.reads == 0
    split_holdout(second, rule, 0.1, by=Unopened(TEXTS))
    for one, other in sides:
        assert [one[i]["number"] for i in range(len(one))] == [other[i]["number"] for i in range(len(other))]
        assert texts_of(other)[0].startswith("another text")
    alone = split_holdout(second, rule, 0.1)
    assert len({side.fingerprint for pair in (sides[0][1:], sides[1][1:], alone) for side in pair}) == 4


@pytest.mark.parametrize("rule", ["hash", "tail"])
@pytest.mark.parametrize("share", [0.0001, 0.9999])
@pytest.mark.parametrize("count", [2, 3])
def test_the_smallest_corpus_has_something_on_both_sides(rule, share, count):
    train, held_out = split_holdout(Documents(TEXTS[:count]), rule, share)
    assert len(train) > 0 and len(held_out) > 0 and len(train) + len(held_out) == count


@pytest.mark.parametrize("texts", [["alone"], ["twin", " twin\n"]])
def test_what_cannot_be_split_asks_for_held_out_documents(texts):
    for side in split_holdout(Documents(texts)):
        with pytest.raises(UserError, match="--config.data.valid"):
            len(side)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match="config.data.holdout.*head"):
        split_holdout(Documents(TEXTS), "head")
