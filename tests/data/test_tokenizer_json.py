"""A tokenizer.json for transformers gives the ids and the texts of the tokenizer that it stands for."""

import json

import numpy as np
import pytest
import tokenizers

from data.tokenizer import CLS, MASK, SEP, SentencePiece, make_tokenizer
from data.tokenizer_json import rebuild, write_for_transformers
from errors import UserError

ODD = [
    "",
    " ",
    "  two  spaces\tand a tab ",
    "lines\nand\r\nmore",
    f"a {MASK} and <0x41> and {SEP} {CLS}",
    "½ ﬁne Ａ\u00a0no\u200bbreak",
    "敏捷的棕色狐狸 37 °C…",
    "😀😀 aaa aaaa aaaaaaa",
]


class Texts(list):
    name, fingerprint = "texts", "texts of the tokenizer.json's test"


@pytest.fixture(scope="module", params=["unigram:600", "bpe:600"])
def trained(request, corpus):
    paragraphs = [*corpus.read_text().split("\n\n"), *["[MA] <B> 0x41 [C] SKELP"] * 50]
    return make_tokenizer(request.param, Texts({"text": text} for text in paragraphs), lambda line: None), paragraphs


def test_it_gives_the_ids_and_the_texts_of_a_sentencepiece_model(trained):
    tokenizer, paragraphs = trained
    rebuilt = rebuild(tokenizer)
    assert rebuilt.vocabulary_hash == tokenizer.vocabulary_hash
    texts = paragraphs[:200] + ODD
    for text, ours, theirs in zip(texts, tokenizer.encode_batch(texts), rebuilt.encode_batch(texts), strict=True):
        np.testing.assert_array_equal(theirs, ours, err_msg=repr(text))
        assert rebuilt.decode(theirs) == tokenizer.decode(ours)


def opened(tokenizer, folder, generates):
    write_for_transformers(tokenizer, folder, generates=generates, max_length=77)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), settings


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece"])
def test_a_text_to_go_on_with_begins_with_the_end_token_and_does_not_end(trained, corpus, tmp_path, kind):
    tokenizer, paragraphs = trained
    if kind == "wordpiece":
        tokenizer = make_tokenizer("wordpiece:128", Texts([{"text": text} for text in paragraphs]), lambda line: None)
    ids = tokenizer.encode_batch(["the old king"])[0].tolist()
    backend, settings = opened(tokenizer, tmp_path / "gpt", generates=True)
    assert backend.encode("the old king").ids == [tokenizer.sep_id, *ids]
    assert settings["model_input_names"] == ["input_ids", "attention_mask"] and settings["model_max_length"] == 77
    assert settings["bos_token"] == settings["eos_token"] == SEP
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and not (tmp_path / "gpt" / "vocab.txt").exists()
    backend, settings = opened(tokenizer, tmp_path / "bert", generates=False)
    assert backend.encode("the old king").ids == [tokenizer.cls_id, *ids, tokenizer.sep_id]
    assert settings["eos_token" if kind == "sentencepiece" else "sep_token"] == SEP


def test_a_foreign_sentencepiece_model_is_refused(trained):
    tokenizer, _ = trained
    numbered = SentencePiece(
        tokenizer.model, "a folder", "--from", [tokenizer.token(i) for i in reversed(range(tokenizer.vocab_size))]
    )
    with pytest.raises(UserError, match="from elsewhere"):
        rebuild(numbered)
