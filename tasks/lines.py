"""Lines of predict.py as batches, and their embeddings: what tasks on whole texts share in their predictions."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.corpus import Corpus
from data.examples import build_examples
from data.pipeline import Batch
from errors import UserError
from tasks.text import TextTask

SORTED = 8  # batches whose lines are sorted by length
SHORTEST = 16  # tokens in the narrowest batch; each wider one is twice as wide: a handful of compilations
EMBEDDINGS = ("cls", "mean")
PROBE = ("The quick brown fox jumps over the lazy dog.", "Übermorgen: 37 °C, 敏捷的棕色狐狸 — or so they say…")


def line_batches(
    task: TextTask, lines: Iterator[str], batch_size: int, truncation: str, pair: bool = False
) -> Iterator[tuple[list[str], Batch, np.ndarray]]:
    """Lines in groups of `batch_size`, each with its batch, one text a row, and how many tokens of each were cut.

    Args:
        pair: a line holds two texts with a tab between.

    Raises:
        UserError: the batch size is no number above 0, or a line is not a pair.
    """
    if batch_size < 1:
        raise UserError("--batch_size", batch_size, "Give a number above 0.")
    waiting: list[str] = []
    for line in lines:
        waiting.append(line)
        if len(waiting) == batch_size:
            yield waiting, *_make_batch(task, waiting, batch_size, truncation, pair)
            waiting = []
    if waiting:
        yield waiting, *_make_batch(task, waiting, batch_size, truncation, pair)


def bucket(length: int) -> int:
    """The width of a batch whose longest text has so many tokens."""
    width = SHORTEST
    while width < length:
        width *= 2
    return width


def answer_in_order(
    items: Iterator[Any], batch_size: int, length: Callable[[Any], int], answer: Callable[[list[Any]], list[Any]]
) -> Iterator[Any]:
    """The answer to each item, in their order, though items of like length are answered together.

    Args:
        length: of an item.
        answer: to at most `batch_size` items at once.

    Raises:
        UserError: the batch size is no number above 0.
    """
    if batch_size < 1:
        raise UserError("--batch_size", batch_size, "Give a number above 0.")
    waiting = SORTED * batch_size if batch_size > 1 else 1  # who asks line by line is answered line by line
    while chunk := list(itertools.islice(items, waiting)):
        order = sorted(range(len(chunk)), key=lambda i: length(chunk[i]))
        found: list[Any] = [None] * len(chunk)
        for begin in range(0, len(order), batch_size):
            together = order[begin : begin + batch_size]
            for i, result in zip(together, answer([chunk[i] for i in together]), strict=True):
                found[i] = result
        yield from found


def embed(
    task: TextTask, model: nnx.Module, lines: Iterator[str], kind: str, batch_size: int, **settings: Any
) -> Iterator[dict[str, Any]]:
    """For each line the embedding of its text: the last hidden state of [CLS], or the mean of all tokens' states."""
    if kind not in EMBEDDINGS:
        raise UserError("--features", repr(kind), f"Choose {', '.join(EMBEDDINGS)}.")

    @jax.jit
    def compute(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        hidden = model.hidden_states(batch)[-1].astype(jnp.float32)
        if kind == "cls":
            return hidden[:, 0]
        present = (batch["segment_ids"] > 0)[:, :, None]
        return (hidden * present).sum(1) / jnp.maximum(present.sum(1), 1)

    for texts, batch, cut in line_batches(task, lines, batch_size, **settings):
        embeddings = np.asarray(compute(model, batch))
        for i, text in enumerate(texts):
            yield with_cut({"text": text, "features": [round(float(x), 6) for x in embeddings[i]]}, cut[i])


def probe_batch(task: TextTask) -> Batch:
    """The texts that are built in, one a row."""
    _, batch, _ = next(line_batches(task, iter(PROBE), len(PROBE), "head"))
    return batch


def with_cut(result: dict[str, Any], cut: int) -> dict[str, Any]:
    """The result, and how much of its text was left out, if anything was."""
    return result | ({"cut_tokens": int(cut)} if cut else {})


def _make_batch(
    task: TextTask, lines: list[str], batch_size: int, truncation: str, pair: bool
) -> tuple[Batch, np.ndarray]:
    sides: list[list[str]] = [lines]
    if pair:
        split = [line.split("\t") for line in lines]
        for line, parts in zip(lines, split, strict=True):
            if len(parts) != 2:
                mend = "Give two texts a line, with a tab between."
                raise UserError("--input", f"a line with {len(parts) - 1} tabs: {line[:40]!r}", mend)
        sides = [list(side) for side in zip(*split, strict=True)]
    corpora = [_corpus(task, side) for side in sides]
    seq_len = task.config.data.seq_len
    ids = {"cls_id": task.tokenizer.cls_id, "sep_id": task.tokenizer.sep_id}
    examples = build_examples(corpora[0], corpora[1] if pair else None, seq_len=seq_len, truncation=truncation, **ids)
    lengths = np.diff(examples.offsets)
    width = min(bucket(lengths.max()), seq_len)

    inside = np.arange(width) < lengths[:, None]
    shape = (batch_size, width)
    batch = {"tokens": np.full(shape, task.tokenizer.pad_id, np.int32), "segment_ids": np.zeros(shape, np.int32)}
    batch["tokens"][: len(lines)][inside] = examples.tokens
    batch["segment_ids"][: len(lines)][inside] = 1
    batch["positions"] = np.broadcast_to(np.arange(width, dtype=np.int32), shape)
    if pair:
        batch["token_types"] = np.zeros(shape, np.int32)
        batch["token_types"][: len(lines)][inside] = examples.token_types
    whole = sum(np.diff(corpus.offsets) for corpus in corpora) + len(corpora) + 1
    return batch, whole - lengths


def _corpus(task: TextTask, texts: list[str]) -> Corpus:
    encoded = task.tokenizer.encode_batch(texts)
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])])
    return Corpus(np.concatenate(encoded), offsets, fingerprint="", bytes_of_text=0)
