"""Tokenizers, for any text, and for files of any content in the place of a tokenizer's."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.tokenizer import MASK, SPECIALS, Tokenizer, load_tokenizer, make_tokenizer
from data.tokenizer_json import rebuild
from errors import UserError
from interop.marian import MARIAN

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "She was reading, writing and singing; he was walking and talking!",
    "the token [MASK] stands between [CLS] and [SEP], said the café owner",
    "我爱北京天安门。今天天气很好,我们去公园散步。",
    "PUNK ABCDEFGHIJLMOQRSTVWXYZ",
    "def f(x):\n\treturn {x: [x]}  # ¼ ﬁ Å",
]
KINDS = ["wordpiece:400", "unigram:512", "bpe:512", "char"]


class Source:
    name = fingerprint = "list"
    texts = SENTENCES * 10

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> dict[str, str]:
        return {"text": self.texts[i]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Tokenizer]:
    """One of each kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROOTSTOCK_CACHE", str(tmp_path_factory.mktemp("cache")))
        return {kind: make_tokenizer(kind, Source(), lambda line: None) for kind in KINDS}


# Any code point there is, half characters and those that are none among them, and what tokenizers look at closely.
PARTS = st.one_of(
    st.text(st.characters(), max_size=8),
    st.sampled_from(
        [*SPECIALS, "##a", "▁", "▁▁", "<0x41>", "<unk>", "</s>", "\u2585", " ", "\n", "\t", "\r\n", "\x00"]
    ),
    st.sampled_from(
        ["我", "爱北京", "😀", "👩‍👩‍👧", "e\u0301", "ﬁ", "\ufeff", "\u200b", "\u202e", "\ud800", "\udfff", "ﷺ", "İ"]
    ),
    st.sampled_from(SENTENCES),
)
TEXTS = st.lists(PARTS, max_size=6).map("".join)


@given(st.lists(TEXTS, max_size=4), st.sampled_from(KINDS), st.booleans())
@example(["\x00", "\ufeff", "\ud800", ""], "unigram:512", False)
def test_any_text_gives_ids_of_the_vocabulary(trained, texts, kind, keep_mask):
    tokenizer = trained[kind]
    encoded = tokenizer.encode_batch(texts, keep_mask)
    assert len(encoded) == len(texts)
    for text, ids in zip(texts, encoded, strict=True):
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert not len(ids) or (ids.min() >= 0 and ids.max() < tokenizer.vocab_size)
        special = ids[np.isin(ids, tokenizer.special_ids)].tolist()
        assert special.count(tokenizer.mask_id) == (text.count(MASK) if keep_mask else 0)
        assert set(special) <= {tokenizer.unk_id, tokenizer.mask_id}
        if kind not in ("wordpiece:400", "char"):
            assert tokenizer.unk_id not in special, "what has no piece is spelled in bytes"
        assert isinstance(tokenizer.decode(ids), str)
        assert tokenizer.decode([tokenizer.cls_id, *ids, tokenizer.sep_id, tokenizer.pad_id]) == tokenizer.decode(ids)
        np.testing.assert_array_equal(tokenizer.encode_batch([text], keep_mask)[0], ids)  # in any company
        if MASK not in text:
            np.testing.assert_array_equal(tokenizer.encode_batch([text], not keep_mask)[0], ids)


KNOWN = sorted({character for text in SENTENCES for character in text})


@given(
    st.lists(st.one_of(st.sampled_from(KNOWN), st.sampled_from([*SPECIALS, "  ", "\n\n"])), max_size=30).map("".join)
)
def test_a_text_of_known_characters_comes_back_from_single_characters(trained, text):
    tokenizer = trained["char"]
    ids = tokenizer.encode_batch([text])[0]
    assert len(ids) == len(text) and tokenizer.decode(ids) == text


@given(TEXTS)
def test_an_unknown_character_is_one_unknown_piece(trained, text):
    tokenizer = trained["char"]
    ids = tokenizer.encode_batch([text])[0]
    clean = text.encode("utf-8", "replace").decode("utf-8")
    assert [tokenizer.token(id) for id in ids] == [c if c in KNOWN else "[UNK]" for c in clean]


PRINTED = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="▁\u2585"), max_size=10)


@given(st.lists(PRINTED, max_size=6), st.sampled_from(["unigram:512", "bpe:512"]))
def test_sentencepiece_gives_every_text_back_as_it_normalises_it(trained, words, kind):
    tokenizer = trained[kind]
    text = " ".join(" ".join(words).split())
    once = tokenizer.decode(tokenizer.encode_batch([text])[0])
    if unicodedata.is_normalized("NFKC", text) and text.isascii():
        assert once == text
    assert tokenizer.decode(tokenizer.encode_batch([once])[0]) == once


PLAIN = st.lists(st.sampled_from("the quick brown fox jumps over lazy dog reading café 我爱北京".split()), max_size=10)


@given(PLAIN, st.sampled_from(["wordpiece:400", "unigram:512", "bpe:512"]))
def test_plain_words_come_back(trained, words, kind):
    if kind == "wordpiece:400":  # which takes accents away, and sets Chinese apart
        words = [word for word in words if word.isascii()]
    text = " ".join(words)
    assert trained[kind].decode(trained[kind].encode_batch([text])[0]) == text


@given(TEXTS, st.sampled_from(KINDS))
def test_a_saved_tokenizer_gives_the_same_ids(trained, tmp_path_factory, text, kind):
    folder = tmp_path_factory.getbasetemp() / f"saved-{kind.partition(':')[0]}"
    if not folder.exists():
        trained[kind].save(folder)
        SAVED[kind] = load_tokenizer(folder)
    np.testing.assert_array_equal(SAVED[kind].encode_batch([text])[0], trained[kind].encode_batch([text])[0])


SAVED: dict[str, Tokenizer] = {}
REBUILT: dict[str, Tokenizer] = {}


@given(
    st.lists(st.one_of(PRINTED, st.sampled_from(SENTENCES)), max_size=5), st.sampled_from(["unigram:512", "bpe:512"])
)
def test_the_tokenizer_json_of_a_sentencepiece_model_gives_its_ids(trained, words, kind):
    if kind not in REBUILT:
        REBUILT[kind] = rebuild(trained[kind])
    text = " ".join(words)
    for piece in (*SPECIALS, "<0x"):  # the one thing that is told apart
        text = text.replace(piece, "")
    np.testing.assert_array_equal(REBUILT[kind].encode_batch([text])[0], trained[kind].encode_batch([text])[0])


# ---- files


def opened_or_refused(path) -> None:
    try:
        tokenizer = load_tokenizer(path, "field")
    except UserError as error:
        assert len(str(error).splitlines()) <= 3
        return
    assert 0 < tokenizer.vocab_size < 2**24
    for ids in tokenizer.encode_batch(["The quick 我 fox [MASK]", ""]):
        assert not len(ids) or (ids.min() >= 0 and ids.max() < tokenizer.vocab_size)
        assert isinstance(tokenizer.decode(ids), str)
    assert tokenizer.continues_word.shape == (tokenizer.vocab_size,)


WORDS = st.lists(
    st.one_of(st.sampled_from([*SPECIALS, "<s>", "<pad>", "a", "##a", "", "我"]), st.text(max_size=4)), max_size=12
)
VOCABULARIES = st.one_of(
    st.binary(max_size=60),
    WORDS.map(lambda words: "\n".join(words).encode("utf-8", "replace")),
    WORDS.map(lambda words: "\n".join([*words, *SPECIALS]).encode("utf-8", "replace")),
)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 9),
        st.sampled_from([2**31, 2**32 - 1, 2**64]),
        st.floats(),
        st.text(max_size=3),
    ),
    lambda values: st.one_of(st.lists(values, max_size=3), st.dictionaries(st.text(max_size=3), values, max_size=3)),
    max_leaves=4,
)
SETTINGS = st.one_of(
    VALUES,
    st.dictionaries(st.sampled_from(["do_lower_case", "strip_accents", "tokenize_chinese_chars"]), VALUES, max_size=3),
)


@given(VOCABULARIES, SETTINGS)
def test_a_vocab_txt_of_any_content_is_opened_or_refused(tmp_path, content, settings):
    (tmp_path / "vocab.txt").write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    opened_or_refused(tmp_path / "vocab.txt")


def holders(value) -> list[tuple]:
    """Every (container, key) in a JSON value."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])
    return [(value, key) for key, _ in items] + [pair for _, item in items for pair in holders(item)]


@pytest.fixture(scope="module")
def contents(trained) -> dict[str, bytes]:
    """tokenizer.json files, and a SentencePiece model, of few pieces."""
    small = json.loads(trained["char"]._content)
    small["model"]["vocab"] = {piece: i for i, piece in enumerate([*SPECIALS, *"abcTheqa 我"])}
    word = json.loads(trained["wordpiece:400"]._content)
    word["model"]["vocab"] = {piece: i for i, piece in enumerate([*SPECIALS, *"abtheqi", "##a", "##h", "##u"])}
    unigram = json.loads(rebuild(trained["unigram:512"])._content)
    unigram["normalizer"]["normalizers"] = unigram["normalizer"]["normalizers"][1:]  # the table alone is long
    bpe = json.loads(rebuild(trained["bpe:512"])._content)
    bpe["normalizer"] = None
    bpe["model"]["merges"] = bpe["model"]["merges"][:2]
    files = {name: json.dumps(file).encode() for name, file in (("char", small), ("word", word))}
    files |= {name: json.dumps(file).encode() for name, file in (("unigram", unigram), ("bpe", bpe))}
    return files | {"model": trained["unigram:512"].model}


@given(st.data(), st.sampled_from(["char", "word", "unigram", "bpe"]))
def test_a_tokenizer_json_with_any_value_changed_is_opened_or_refused(tmp_path, contents, data, kind):
    about = json.loads(contents[kind])
    parts = data.draw(
        st.sampled_from(
            [about, about["model"], about["added_tokens"], about.get("post_processor"), about["pre_tokenizer"]]
        )
    )
    for _ in range(data.draw(st.integers(1, 2))):
        places = holders(parts)
        if not places:
            break
        container, key = places[data.draw(st.integers(0, len(places) - 1))]
        container[key] = data.draw(VALUES)
    (tmp_path / "tokenizer.json").write_text(json.dumps(about))
    opened_or_refused(tmp_path)


@given(st.one_of(st.binary(max_size=60), VALUES.map(lambda value: json.dumps(value).encode())))
@example(b"[" * 100_000)
def test_a_tokenizer_json_of_any_content_is_opened_or_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    opened_or_refused(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},  # Rust panics as it reads this one,
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A" * 16}},  # and here at the first text
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}, "added_tokens": []},
        {"model": {"type": "WordLevel", "vocab": {piece: i for i, piece in enumerate(SPECIALS)}, "unk_token": "[UNK]"}},
        {"model": {"type": "WordLevel", "vocab": {"a": 2**31, **dict(zip(SPECIALS, range(5), strict=True))}}},
        {
            "model": {
                "type": "WordLevel",
                "vocab": dict(zip([*SPECIALS, "a"], range(6), strict=True)),
                "unk_token": "no",
            }
        },
        {
            "model": {
                "type": "BPE",
                "vocab": dict(zip([*SPECIALS, "a"], range(6), strict=True)),
                "merges": [],
                "unk_token": "no",
            }
        },
    ],
)
def test_a_tokenizer_json_that_fails_at_a_text_is_refused_at_once(tmp_path, contents, change):
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(contents["char"]) | change))
    with pytest.raises(UserError) as refused:
        load_tokenizer(tmp_path, "field")
    assert refused.value.field == "field" and len(str(refused.value).splitlines()) <= 3


def test_a_vocab_txt_of_specials_alone_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(SPECIALS))
    with pytest.raises(UserError, match="specials alone"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("path", ["a" * 300, "a\0", "~no-such-user/tokenizer.json", "b:" + "a" * 300])
def test_a_tokenizer_of_any_name_is_refused_where_there_is_none(path):
    with pytest.raises(UserError):
        make_tokenizer(path, Source())


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.one_of(st.integers(0, 600), st.integers(0, len(whole)))) % (len(content) + 1)
        change = draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if change == "flip" and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "insert":
            content[place:place] = draw(st.binary(max_size=8))
        elif change == "cut":
            del content[place : place + draw(st.integers(1, 30))]
        elif change == "end":
            del content[place:]
    return bytes(content)


PIECES = st.one_of(st.none(), VALUES, st.lists(st.sampled_from([*SPECIALS, "▁the", "e", "<pad>"]), max_size=9))


@given(st.data(), PIECES)
def test_a_damaged_sentencepiece_model_is_opened_or_refused(tmp_path, contents, data, pieces):
    content = data.draw(st.one_of(st.just(contents["model"]), st.binary(max_size=60), damaged(contents["model"])))
    (tmp_path / "tokenizer.model").write_bytes(content)
    numbered = tmp_path / "pieces.json"
    numbered.unlink(missing_ok=True)
    if pieces is not None:
        numbered.write_text(json.dumps(pieces))
    opened_or_refused(tmp_path)


@given(
    st.data(),
    st.one_of(
        st.binary(max_size=20).map(lambda content: content.decode("latin-1")),
        VALUES.map(json.dumps),
        st.dictionaries(st.sampled_from(["<unk>", "</s>", "<pad>", "▁the", "e"]), st.integers(0, 4)).map(json.dumps),
    ),
)
@example(None, "[" * 100_000)
@example(None, "[true]")
@example(None, json.dumps({"<unk>": 0, "</s>": 1, "<pad>": 2, "e": 3}))
def test_the_tokenizers_of_a_marian_folder_are_opened_or_refused(tmp_path, contents, data, vocabulary):
    models = st.one_of(st.just(contents["model"]), st.binary(max_size=60), damaged(contents["model"]))
    for name in ("source.spm", "target.spm"):
        (tmp_path / name).write_bytes(data.draw(models) if data else b"no model")
    (tmp_path / "vocab.json").write_text(vocabulary, encoding="utf-8")
    try:
        opened = MARIAN.open_tokenizers(tmp_path, "field")
    except UserError as error:
        assert error.field == "field" and len(str(error).splitlines()) <= 3
        return
    for tokenizer in opened:
        ids = tokenizer.encode_batch(["the fox 我"])[0]
        assert not len(ids) or (ids.min() >= 0 and ids.max() < tokenizer.vocab_size)
