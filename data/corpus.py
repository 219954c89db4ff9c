"""Documents as token ids: tokenised once, kept in a compact file, memory-mapped."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data.cache import cached_folder, fingerprint
from data.sources import Source
from data.tokenizer import Tokenizer
from errors import UserError

VERSION = 1  # of the file format
BATCH = 1_000  # texts that are encoded together,
PART = 100_000  # of at most so many characters each


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All documents of a source, one behind the other.

    Attributes:
        tokens: uint16 or uint32 [total], by the size of the vocabulary; without [CLS] and [SEP].
        offsets: int64 [documents + 1]; document i is tokens[offsets[i]:offsets[i + 1]] and may be empty.
        fingerprint: changes with the text and with the tokenizer.
        bytes_of_text: the size of the text in UTF-8.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    fingerprint: str
    bytes_of_text: int


def tokenize_corpus(source: Source, tokenizer: Tokenizer, log: Callable[[str], None] = print) -> Corpus:
    """The corpus of a source; the second call for the same content reads the cache and none of the records.

    Raises:
        UserError: the source gives no token at all.
    """
    key = fingerprint(VERSION, source.fingerprint, tokenizer.fingerprint)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)

    def build(folder: Path) -> None:
        log(f"tokens: encoding {source.name}")
        lengths, size = np.zeros(len(source), np.int64), 0
        with (folder / "tokens.bin").open("wb") as out:
            for documents, texts in _batches(source):
                size += sum(len(text.encode("utf-8", "replace")) for text in texts)
                for document, ids in zip(documents, tokenizer.encode_batch(texts), strict=True):
                    lengths[document] += len(ids)
                    out.write(ids.astype(dtype).tobytes())
        if not lengths.any():
            raise UserError(source.name, "holds no text", "Name a source with text in it.")
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
        (folder / "about.json").write_text(json.dumps({"source": source.name, "bytes_of_text": size}))

    folder = cached_folder("tokens", key, build)
    about = json.loads((folder / "about.json").read_text())
    tokens = np.memmap(folder / "tokens.bin", dtype, mode="r")
    return Corpus(tokens, np.load(folder / "offsets.npy"), key, about["bytes_of_text"])


def _batches(source: Source) -> Iterator[tuple[list[int], list[str]]]:
    """Texts to encode together, and which document each belongs to: bounded memory, however long a document is."""
    documents: list[int] = []
    texts: list[str] = []
    room = 10 * PART
    for document in range(len(source)):
        for text in _parts(source[document]["text"]):
            documents.append(document)
            texts.append(text)
            room -= len(text)
            if len(texts) == BATCH or room <= 0:
                yield documents, texts
                documents, texts, room = [], [], 10 * PART
    if texts:
        yield documents, texts


def _parts(text: str) -> Iterator[str]:
    """A text in parts of at most `PART` characters, cut before a space if there is one: no word is cut in two."""
    start = 0
    while len(text) - start > PART:
        space = max(text.rfind(" ", start + 1, start + PART), text.rfind("\n", start + 1, start + PART))
        end = space if space > 0 else start + PART
        yield text[start:end]
        start = end
    yield text[start:]
