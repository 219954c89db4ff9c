"""What every task on texts has: a tokenizer, splits of a source, and a model whose sizes follow from both."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.sources import Source, open_source, sample, split_holdout
from data.tokenizer import Tokenizer, load_tokenizer, make_tokenizer
from errors import UserError
from tasks.task import Log, Task

EXAMPLES = 2  # that are shown of a batch


class TextTask(Task):
    """Owns the tokenizer.

    Args:
        config: the run's config; what follows from the data is resolved in it: `model.vocab_size`,
            `model.max_positions`, `data.vocabulary_hash`.
    """

    def __init__(self, config: Any, tokenizer: Tokenizer, log: Log = print):
        self.tokenizer = tokenizer
        config.data.vocabulary_hash = tokenizer.vocabulary_hash
        model = config.model
        model.vocab_size = model.vocab_size or -(-tokenizer.vocab_size // 64) * 64
        if model.vocab_size < tokenizer.vocab_size:
            mend = f"The tokenizer has {tokenizer.vocab_size} pieces: give at least as many, or 0."
            raise UserError("config.model.vocab_size", model.vocab_size, mend)
        if "max_positions" in model:
            model.max_positions = model.max_positions or config.data.seq_len
            if model.max_positions < config.data.seq_len:
                mend = f"config.data.seq_len is {config.data.seq_len}: give at least as many, or 0."
                raise UserError("config.model.max_positions", model.max_positions, mend)
        super().__init__(config, log)

    @classmethod
    def create(cls, config: Any, log: Log, origin: Any = None) -> Any:
        """For a new run. The tokenizer is that of `origin`, the weights it begins with, or is loaded, or is trained on
        the training split alone.
        """
        cls.check(config)
        if origin is not None:
            return cls(config, origin.tokenizer, log)
        train, _ = open_splits(config)
        return cls(config, make_tokenizer(config.data.tokenizer, train, log), log)

    @classmethod
    def restore(cls, config: Any, folder: Path, log: Log) -> Any:
        """For a run that is there: the tokenizer that was saved with it in `folder`."""
        return cls(config, load_run_tokenizer(folder / "tokenizer", config.data.vocabulary_hash), log)

    def save(self, folder: Path) -> None:
        """Writes what `restore` reads beside the config."""
        self.tokenizer.save(folder / "tokenizer")

    def fingerprints(self) -> dict[str, str]:
        return {"tokenizer": self.tokenizer.fingerprint}

    def examples(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        rows = zip(batch["tokens"][:EXAMPLES], batch["segment_ids"], strict=False)
        return [first_text(self.tokenizer, tokens, segments) for tokens, segments in rows]

    def full_rows(self, sums: Mapping[str, float]) -> float:
        return sums["tokens"] / self.config.data.seq_len


def first_text(tokenizer: Tokenizer, tokens: np.ndarray, segments: np.ndarray) -> str:
    """The pieces of the first text of a row, as they stand in the vocabulary."""
    return " ".join(tokenizer.token(int(token)) for token in tokens[segments == 1])


def token_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Mean cross-entropy of the tokens that count, its exponential, and the share of them that were named."""
    weight = max(sums["weight"], 1.0)
    loss = sums["loss"] / weight
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": sums["correct"] / weight}


def load_run_tokenizer(folder: Path, vocabulary_hash: str) -> Tokenizer:
    """The tokenizer that was saved with a run; UserError if it is another."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocabulary_hash != vocabulary_hash:
        value = "is not the tokenizer that the run was trained with"
        raise UserError(str(folder), value, "Put the run's own tokenizer back.")
    return tokenizer


def open_splits(config: Any, key: str = "text", by: str = "text", limited: bool = True) -> tuple[Source, Source]:
    """The training and the validation documents; the latter held out of the former where no source is named.

    Args:
        key: the key of `config.data` that names the column of the text; `by`: of the one that decides what is held out.
        limited: only `config.data.limit` of the training documents, if that is given.
    """
    data = config.data
    train = open_text(config, data.train, "config.data.train", key)
    if data.valid:
        valid = open_text(config, data.valid, "config.data.valid", key)
    else:
        deciding = open_text(config, data.train, "config.data.train", by) if by != key else None
        train, valid = split_holdout(train, data.holdout, data.holdout_share, by=deciding)
    return sample(train, data.get("limit", 0) if limited else 0), valid


def open_split(config: Any, split: str, source: str = "", key: str = "text", by: str = "text") -> Source:
    """The documents of `train`, `valid` or `test`, or of another source; `key` and `by` as in `open_splits`."""
    if source:
        return open_text(config, source, "--data", key)
    if split == "test":
        if not config.data.test:
            raise UserError("--split", "test, but the run has no config.data.test", "Give --data=SOURCE instead.")
        return open_text(config, config.data.test, "config.data.test", key)
    return dict(zip(("train", "valid"), open_splits(config, key, by), strict=True))[split]


def open_text(config: Any, spec: str, field: str, key: str = "text") -> Source:
    """A source whose records' text is the column that `config.data` has under `key`."""
    try:
        return open_source(spec, text=config.data[key], document=config.data.document, field=field)
    except UserError as error:
        if error.field != "config.data.text":
            raise
        raise UserError(f"config.data.{key}", error.value, error.mend) from error
