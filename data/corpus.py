"""Documents as token ids: tokenised once, kept in a compact file, memory-mapped."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.cache import cached_folder, fingerprint
from data.sources import Source
from data.tokenizer import Tokenizer
from errors import UserError

VERSION = 1  # of the file format
BATCH = 1_000  # documents that are encoded together


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
        lengths, size = [], 0
        with (folder / "tokens.bin").open("wb") as out:
            for start in range(0, len(source), BATCH):
                texts = [source[i]["text"] for i in range(start, min(start + BATCH, len(source)))]
                size += sum(len(text.encode("utf-8", "replace")) for text in texts)
                for ids in tokenizer.encode_batch(texts):
                    lengths.append(len(ids))
                    out.write(ids.astype(dtype).tobytes())
        if not sum(lengths):
            raise UserError(source.name, "holds no text", "Name a source with text in it.")
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        (folder / "about.json").write_text(json.dumps({"source": source.name, "bytes_of_text": size}))

    folder = cached_folder("tokens", key, build)
    about = json.loads((folder / "about.json").read_text())
    tokens = np.memmap(folder / "tokens.bin", dtype, mode="r")
    return Corpus(tokens, np.load(folder / "offsets.npy"), key, about["bytes_of_text"])
