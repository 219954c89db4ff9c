import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from data.tokenizer import KINDS, SPECIALS, Tokenizer, load_tokenizer, make_tokenizer
from errors import UserError

ENGLISH = [
    "The quick brown fox jumps over the lazy dog.",
    "She was reading, writing and singing; he was walking and talking!",
    "Pack my box with five dozen liquor jugs, said the café owner.",
    "In a model like BERT the token [MASK] stands between [CLS] and [SEP].",
]
CHINESE = ["我爱北京天安门。", "今天天气很好,我们去公园散步。", "机器学习模型需要很多数据。"]


class Source:
    def __init__(self, texts: list[str], name: str = "list"):
        self.name, self.texts, self.fingerprint = name, texts, f"{name}-{hash(tuple(texts))}"

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> dict[str, str]:
        return {"text": self.texts[i]}


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module", params=["wordpiece:150", "unigram:512", "bpe:512"])
def tokenizer(request) -> Tokenizer:
    return make_tokenizer(request.param, Source((ENGLISH + CHINESE) * 20), quiet)


def pieces_of(tokenizer: Tokenizer, text: str, keep_mask: bool = False) -> list[str]:
    return [tokenizer.token(i) for i in tokenizer.encode_batch([text], keep_mask)[0]]


def test_specials_are_the_ids_0_to_4_in_the_usual_order(tokenizer):
    assert [tokenizer.token(i) for i in range(5)] == list(SPECIALS)
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (
        0,
        1,
        2,
        3,
        4,
    )


def test_no_text_gives_a_special_piece(tokenizer):
    text = "a[MASK] [CLS]b [SEP] [PAD] [UNK] [mask] fox"
    ids = tokenizer.encode_batch([text])[0]
    assert ids.dtype == np.int32 and not np.isin(ids, tokenizer.special_ids).any()
    assert "fox" in tokenizer.decode(ids)


def test_with_keep_mask_only_mask_is_special(tokenizer):
    ids = tokenizer.encode_batch(["[MASK] the [MASK][MASK] and [CLS] [SEP] [MASK]", "the dog", ""], keep_mask=True)
    assert (ids[0] == tokenizer.mask_id).sum() == 4 and not np.isin(ids[0], [0, 2, 3]).any()
    assert ids[0][0] == ids[0][-1] == tokenizer.mask_id
    np.testing.assert_array_equal(ids[1], tokenizer.encode_batch(["the dog"])[0])
    assert len(ids[2]) == 0


def test_words_around_a_mask_are_encoded_as_they_are_without_it(tokenizer):
    around = tokenizer.encode_batch(["the quick [MASK] jumps over"], keep_mask=True)[0].tolist()
    before, after = (ids.tolist() for ids in tokenizer.encode_batch(["the quick", "jumps over"]))
    assert around == [*before, tokenizer.mask_id, *after]


@pytest.mark.parametrize("kind", ["unigram:512", "bpe:512"])
def test_sentencepiece_adds_no_space_behind_a_mask_that_had_none(kind):
    tokenizer = make_tokenizer(kind, Source((ENGLISH + CHINESE) * 20), quiet)
    pieces = pieces_of(tokenizer, "我[MASK]北京", keep_mask=True)
    assert not any(piece.startswith("▁") for piece in pieces[pieces.index("[MASK]") :])


def test_continuing_pieces_are_those_inside_a_word(tokenizer):
    assert tokenizer.continues_word.shape == (tokenizer.vocab_size,) and tokenizer.continues_word.dtype == bool
    assert not tokenizer.continues_word[list(tokenizer.special_ids)].any()
    for text in ("quixotically", "fox over dog jugs", "zzzyx"):
        flags = tokenizer.continues_word[tokenizer.encode_batch([text])[0]]
        assert (~flags).sum() == len(text.split())
    # Chinese is written without spaces; a character may not be taken for the end of the word before it.
    for i in range(tokenizer.vocab_size):
        assert not (tokenizer.token(i)[0] in "我爱天" and tokenizer.continues_word[i])


def test_a_saved_tokenizer_is_the_same_after_loading(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "folder")
    loaded = load_tokenizer(tmp_path / "folder")
    assert loaded.fingerprint == tokenizer.fingerprint and loaded.vocab_size == tokenizer.vocab_size
    for keep_mask in (False, True):
        texts = [*ENGLISH, *CHINESE, "unseen wörds 丫", ""]
        for one, two in zip(
            tokenizer.encode_batch(texts, keep_mask), loaded.encode_batch(texts, keep_mask), strict=True
        ):
            np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(loaded.continues_word, tokenizer.continues_word)


def test_text_comes_back_from_its_pieces(tokenizer):
    text = "the quick brown fox was reading"
    ids = tokenizer.encode_batch([text])[0]
    assert tokenizer.decode([2, *ids, 3, 0, 0]) == text


def test_lone_surrogates_are_replaced(tokenizer):
    np.testing.assert_array_equal(*tokenizer.encode_batch(["the \ud800 fox", "the ? fox"]))


@pytest.mark.parametrize("kind", ["unigram:512", "bpe:512"])
def test_sentencepiece_knows_every_character(kind):
    tokenizer = make_tokenizer(kind, Source((ENGLISH + CHINESE) * 20), quiet)
    text = "龘 𝔘 😀 ж quick 今天"
    ids = tokenizer.encode_batch([text])[0]
    assert tokenizer.unk_id not in ids and tokenizer.decode(ids) == "龘 U 😀 ж quick 今天"  # NFKC makes 𝔘 a U


# ---- WordPiece


def test_wordpiece_ids_are_those_of_its_tokenizer_json(tmp_path):
    tokenizer = make_tokenizer("wordpiece:150", Source(ENGLISH * 20), quiet)
    tokenizer.save(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("The QUICK Café, reading... 中文", *ENGLISH[:3]):
        encoding = plain.encode(text)
        assert encoding.ids == [2, *tokenizer.encode_batch([text])[0], 3]
    pair = plain.encode("the fox", "lazy dog")
    assert pair.tokens.count("[SEP]") == 2 and pair.type_ids == [0] * (pair.tokens.index("[SEP]") + 1) + [1] * (
        len(pair) - pair.tokens.index("[SEP]") - 1
    )
    kept = tokenizer.encode_batch(["the [MASK] dog"], keep_mask=True)[0]
    assert plain.encode("the [MASK] dog").ids == [2, *kept, 3]


def test_wordpiece_normalises_as_bert_does():
    tokenizer = make_tokenizer("wordpiece:150", Source((ENGLISH + CHINESE) * 20), quiet)
    np.testing.assert_array_equal(*tokenizer.encode_batch(["THE  Cafe\u0301\x00 fox", "the cafe fox"]))
    assert pieces_of(tokenizer, "天天")[0] == "天" and len(pieces_of(tokenizer, "天天")) == 2


def test_vocab_txt_alone_gives_the_same_ids(tmp_path):
    tokenizer = make_tokenizer("wordpiece:150", Source(ENGLISH * 20), quiet)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path / "vocab.txt")
    assert loaded.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(loaded.encode_batch(["Reading!"])[0], tokenizer.encode_batch(["Reading!"])[0])


def test_a_vocabulary_with_capitals_is_cased(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "Fox", "fox", "é"]) + "\n", encoding="utf-8")
    assert pieces_of(load_tokenizer(tmp_path), "Fox fox é") == ["Fox", "fox", "é"]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, ["fox", "cafe", "天", "天"]),
        ({"do_lower_case": True}, ["fox", "cafe", "天", "天"]),
        ({"do_lower_case": False}, ["[UNK]", "café", "天", "天"]),
        ({"do_lower_case": None, "strip_accents": False}, ["fox", "café", "天", "天"]),
        ({"do_lower_case": False, "strip_accents": True}, ["[UNK]", "cafe", "天", "天"]),
        ({"tokenize_chinese_chars": False}, ["fox", "cafe", "天天"]),
    ],
)
def test_the_settings_beside_a_vocab_txt_are_kept(tmp_path, settings, found):
    pieces = [*SPECIALS, "fox", "cafe", "café", "天", "天天"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    assert pieces_of(tokenizer, "Fox café 天天") == found
    assert pieces_of(tokenizer, "fox") == ["fox"]
    tokenizer.save(tmp_path / "saved")  # what transformers' BertTokenizer reads
    (tmp_path / "saved" / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint


def test_a_tokenizer_that_is_not_berts_is_not_called_berts(tmp_path):
    make_tokenizer("wordpiece:150", Source(ENGLISH * 20), quiet).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    for changed, name in (
        (about, "BertTokenizer"),
        (about | {"normalizer": about["normalizer"] | {"clean_text": False}}, "PreTrainedTokenizerFast"),
        (about | {"normalizer": {"type": "Lowercase"}}, "PreTrainedTokenizerFast"),
        (about | {"pre_tokenizer": {"type": "WhitespaceSplit"}}, "PreTrainedTokenizerFast"),
        (about | {"model": about["model"] | {"max_input_chars_per_word": 20}}, "PreTrainedTokenizerFast"),
    ):
        path.write_text(json.dumps(changed), encoding="utf-8")
        folder = tmp_path / "saved"
        shutil.rmtree(folder, ignore_errors=True)
        load_tokenizer(path).save(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] == name
        assert "token_type_ids" in settings.get("model_input_names", ()) or name == "BertTokenizer"
        assert (folder / "vocab.txt").exists() == (name == "BertTokenizer")
        assert load_tokenizer(folder).fingerprint == load_tokenizer(path).fingerprint


def test_specials_may_have_any_ids(tmp_path):
    pieces = ["[PAD]", *(f"[unused{i}]" for i in range(99)), *SPECIALS[1:], "the", "fox", "##es"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    load_tokenizer(tmp_path).save(tmp_path / "saved")
    tokenizer = load_tokenizer(tmp_path / "saved" / "tokenizer.json")
    assert tokenizer.special_ids == (0, 100, 101, 102, 103) and tokenizer.mask_id == 103
    assert pieces_of(tokenizer, "the foxes [MASK]", keep_mask=True) == ["the", "fox", "##es", "[MASK]"]


def test_no_loaded_vocabulary_can_make_specials_out_of_text_or_cut_it(tmp_path):
    words = {piece: i for i, piece in enumerate([*SPECIALS, "fox"])}
    backend = tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # "[MASK]" is a word, and the vocabulary has it
    backend.enable_truncation(3)
    backend.enable_padding(length=3)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert pieces_of(load_tokenizer(tmp_path), "fox [MASK] fox [SEP] fox") == ["fox", "[UNK]", "fox", "[UNK]", "fox"]
    assert pieces_of(load_tokenizer(tmp_path), "fox") == ["fox"]


def test_rare_characters_do_not_eat_the_vocabulary():
    rare = "".join(chr(c) for c in range(0x4E00, 0x4E00 + 300))
    tokenizer = make_tokenizer("wordpiece:100", Source([*ENGLISH * 50, rare]), quiet)
    assert tokenizer.vocab_size == 100 and pieces_of(tokenizer, "the") == ["the"]


def test_a_few_rare_characters_are_kept():
    tokenizer = make_tokenizer("wordpiece:2000", Source([*ENGLISH * 500, "in 1987 for 65 €"]), quiet)
    assert "[UNK]" not in pieces_of(tokenizer, "in 1987 for 65 €")


# ---- training


def test_the_same_text_gives_the_same_file_in_every_process(tmp_path):
    program = (
        "import sys; from pathlib import Path; from data.tokenizer import make_tokenizer\n"
        "class Source(list):\n"
        "    name = fingerprint = 'words'\n"
        "words = [f'{a}{b}{c}' for a in 'abcdefgh' for b in 'ijklmnop' for c in 'qrstuvw']\n"
        "source = Source({'text': ' '.join(words[i::9])} for i in range(9))\n"  # all pairs of characters tie
        "for spec in ('wordpiece:300', 'unigram:512', 'bpe:512'):\n"
        "    make_tokenizer(spec, source, print).save(Path(sys.argv[1]))\n"
    )
    runs = []
    for run in range(3):
        environment = os.environ | {
            "ROOTSTOCK_CACHE": str(tmp_path / f"cache{run}"),
            "TOKENIZERS_PARALLELISM": "true",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        folder = tmp_path / f"run{run}"
        subprocess.run([sys.executable, "-c", program, str(folder)], env=environment, check=True, capture_output=True)
        runs.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert {"tokenizer.json", "vocab.txt", "tokenizer.model"} < set(runs[0])
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_text_gives_a_smaller_vocabulary_and_says_so_each_time(kind):
    source = Source(ENGLISH, f"small-{kind}")
    for _ in range(2):  # trained, then from the cache
        lines: list[str] = []
        tokenizer = make_tokenizer(f"{kind}:8192", source, lines.append)
        assert f"tokenizer: asked for 8,192 pieces, the text gave {tokenizer.vocab_size:,}" in lines
        assert 30 < tokenizer.vocab_size < 1_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_has_the_size_asked_for_and_is_trained_once(kind):
    source = Source(ENGLISH * 20, f"once-{kind}")
    size = 100 if kind == "wordpiece" else 512
    lines: list[str] = []
    one, two = (make_tokenizer(f"{kind}:{size}", source, lines.append) for _ in range(2))
    assert sum("training" in line for line in lines) == 1
    assert one.fingerprint == two.fingerprint
    assert one.vocab_size == size if kind == "wordpiece" else one.vocab_size <= size


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_no_line_is_left_out_of_training(kind):
    # Long lines, and lines with U+2585, are skipped by SentencePiece without a word.
    source = Source([*ENGLISH * 5, "жщю" * 30_000, "дфя▅дфя " * 500], f"long-{kind}")
    tokenizer = make_tokenizer(f"{kind}:600", source, quiet)
    for text in ("жщюжщю", "дфя"):
        assert not any(piece.startswith("<0x") for piece in pieces_of(tokenizer, text))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [[], ["", " \n\t "]])
def test_an_empty_corpus_is_the_users_mistake(kind, texts):
    with pytest.raises(UserError, match="empty.txt.*no text"):
        make_tokenizer(f"{kind}:600", Source(texts, "empty.txt"), quiet)


def test_more_characters_than_pieces_are_the_users_mistake():
    source = Source([chr(c) * 2 for c in range(0x4E00, 0x4E00 + 500)])
    with pytest.raises(UserError, match="need 7.. pieces"):
        make_tokenizer("unigram:512", source, quiet)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wordpiece:-3", "at least 64"),
        ("wordpiece:abc", "at least 64"),
        ("wordpiece:", "at least 64"),
        ("wordpiece", "at least 64"),
        ("wordpiece:20", "at least 64"),
        ("bpe:1e4", "at least 512"),
        ("unigram:300", "at least 512"),
        ("wordpeice:100", "Did you mean wordpiece:100"),
        ("nowhere/vocab.txt", "no file"),
    ],
)
def test_a_bad_spec_is_the_users_mistake(spec, message):
    with pytest.raises(UserError, match=message) as raised:
        make_tokenizer(spec, Source(ENGLISH), quiet)
    assert raised.value.field == "config.data.tokenizer" and spec in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff\x00"),
        ("vocab.txt", b"a\nb\n"),
        ("vocab.txt", b"\xff\xfe"),
        ("vocab.txt", b""),
        ("spiece.model", b"nonsense"),
        ("spiece.model", b""),
        ("readme.md", b"hello"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_the_users_mistake(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(UserError) as raised:
            load_tokenizer(path, "--tokenizer")
        assert raised.value.field == "--tokenizer" and str(tmp_path) in str(raised.value)


def test_missing_specials_are_named(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\nfox\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"has no \[SEP\], \[MASK\]"):
        load_tokenizer(tmp_path)
