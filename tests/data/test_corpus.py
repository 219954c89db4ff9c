import dataclasses

import numpy as np
import pytest

from data import corpus as corpus_module
from data.corpus import tokenize_corpus
from data.tokenizer import Tokenizer, make_tokenizer
from errors import UserError


class Source:
    def __init__(self, texts: list[str], name: str = "list"):
        self.name, self.texts, self.reads = name, texts, 0
        self.fingerprint = f"{name}-{hash(tuple(texts))}"

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> dict[str, str]:
        self.reads += 1
        return {"text": self.texts[i]}


TEXTS = [f"document {i} speaks of {word} and of [MASK]" for i in range(30) for word in ("rivers", "été", "mountains")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer("wordpiece:200", Source(TEXTS), lambda line: None)


def documents_of(corpus) -> list[list[int]]:
    return [corpus.tokens[a:b].tolist() for a, b in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)]


def test_each_document_has_the_ids_that_the_tokenizer_gives_it(tokenizer, monkeypatch):
    monkeypatch.setattr(corpus_module, "BATCH", 7)
    texts = [*TEXTS, "", "  \n ", "the last"]
    corpus = tokenize_corpus(Source(texts, "each"), tokenizer, lambda line: None)
    expected = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    assert documents_of(corpus) == expected and [] in expected
    assert corpus.tokens.dtype == np.uint16 and corpus.offsets.dtype == np.int64
    assert corpus.bytes_of_text == sum(len(text.encode()) for text in texts)
    assert not np.isin(corpus.tokens, [tokenizer.mask_id, tokenizer.cls_id, tokenizer.sep_id]).any()


def test_a_second_call_reads_no_record(tokenizer):
    source = Source(TEXTS, "twice")
    lines: list[str] = []
    first = tokenize_corpus(source, tokenizer, lines.append)
    source.reads = 0
    second = tokenize_corpus(source, tokenizer, lines.append)
    assert source.reads == 0 and len(lines) == 1
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert dataclasses.replace(first, tokens=None, offsets=None) == dataclasses.replace(
        second, tokens=None, offsets=None
    )


def test_another_text_or_tokenizer_is_another_corpus(tokenizer):
    other = make_tokenizer("wordpiece:80", Source(TEXTS), lambda line: None)
    one = tokenize_corpus(Source(TEXTS), tokenizer, lambda line: None)
    assert len({one.fingerprint, tokenize_corpus(Source(TEXTS), other, lambda line: None).fingerprint}) == 2
    assert one.fingerprint != tokenize_corpus(Source(TEXTS[1:]), tokenizer, lambda line: None).fingerprint


def test_a_document_longer_than_a_part_is_encoded_as_if_in_one_go(tokenizer, monkeypatch):
    text = "rivers and mountains\nspeak of documents " * 50
    expected = tokenizer.encode_batch([text])[0].tolist()
    monkeypatch.setattr(corpus_module, "PART", 33)
    corpus = tokenize_corpus(Source(["first", text, "last"], "long"), tokenizer, lambda line: None)
    assert documents_of(corpus)[1] == expected and len(corpus.offsets) == 4
    assert "".join(corpus_module._parts("x" * 100)) == "x" * 100  # no space to cut at


def test_lone_surrogates_do_no_harm(tokenizer):
    corpus = tokenize_corpus(Source(["rivers \ud800 and", "documents"], "surrogate"), tokenizer, lambda line: None)
    assert len(corpus.tokens) > 0 and corpus.bytes_of_text == len("rivers ? and" + "documents")


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_a_source_without_text_is_the_users_mistake(tokenizer, texts):
    with pytest.raises(UserError, match="empty.txt.*no text"):
        tokenize_corpus(Source(texts, "empty.txt"), tokenizer, lambda line: None)
