"""Masked-language-model pretraining (Devlin et al. 2018, arXiv:1810.04805, section 3.1): name the hidden tokens."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.corpus import tokenize_corpus
from data.masking import Masking, mask_batch
from data.packing import gather_rows, pack
from data.pipeline import Batch, Rows
from data.tokenizer import Tokenizer
from errors import UserError
from tasks.lines import probe_batch
from tasks.text import Log, TextTask, open_split, token_metrics

EVAL_SEED = 0  # the masks of an evaluation are the same in every run, so that runs can be compared


@dataclasses.dataclass(frozen=True)
class FillMaskOptions:
    """The flags that predict.py takes for this task."""

    top_k: int = 5  # how many fillers for each mask
    batch_size: int = 32  # lines that are computed together


class MaskedLM(TextTask):
    """Makes masked rows, and says what loss, metrics and predictions are."""

    Options = FillMaskOptions

    def __init__(self, config: Any, tokenizer: Tokenizer, log: Log = print):
        if tokenizer.mask_id < 0:
            raise UserError("config.data.tokenizer", "has no [MASK]", "Give a tokenizer that can hide a token.")
        super().__init__(config, tokenizer, log)

    @staticmethod
    def check(config: Any) -> None:
        for name in ("mask_rate", "eval_mask_rate"):
            if not 0 < config.data[name] < 1:
                raise UserError(f"config.data.{name}", config.data[name], "Give a share between 0 and 1, such as 0.15.")

    # ---- rows

    def rows(self, split: str, source: str = "") -> Rows:
        """The packed and masked rows of `train`, `valid`, `test`, or of another source, masked as in an evaluation."""
        data = self.config.data
        corpus = tokenize_corpus(open_split(self.config, split, source), self.tokenizer, self.log)
        packing = pack(corpus.offsets, data.seq_len)
        training = split == "train" and not source
        masking = Masking(
            vocab_size=self.tokenizer.vocab_size,
            mask_id=self.tokenizer.mask_id,
            special_ids=self.tokenizer.special_ids,
            continues_word=self.tokenizer.continues_word,
            rate=data.mask_rate if training else data.eval_mask_rate,
            whole_word=data.whole_word,
        )
        seed = self.config.seed if training else EVAL_SEED
        ids = {"pad_id": self.tokenizer.pad_id, "cls_id": self.tokenizer.cls_id, "sep_id": self.tokenizer.sep_id}

        def load(rows: np.ndarray, epochs: np.ndarray) -> Batch:
            batch = gather_rows(corpus.tokens, packing, rows, **ids)
            masked = mask_batch(
                batch["tokens"], batch["segment_ids"], masking=masking, seed=seed, epoch=epochs, index=rows
            )
            return batch | masked

        def records(rows: np.ndarray) -> np.ndarray:
            return packing.documents(rows, corpus.offsets)

        documents, tokens = len(corpus.offsets) - 1, len(corpus.tokens)
        summary = (
            f"{documents:,} documents · {tokens:,} tokens · {len(packing):,} rows of {data.seq_len}"
            f" · {packing.padding:.1%} padding"
        )
        fingerprint = f"{corpus.fingerprint}/{data.seq_len}"
        return Rows(count=len(packing), load=load, records=records, fingerprint=fingerprint, summary=summary)

    # ---- loss and metrics

    def loss(self, model: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> dict[str, jax.Array]:
        """Sums over the batch: `loss` (in nats) and `correct` over the `weight` hidden tokens; `tokens`, `examples`."""
        size = self.tokenizer.vocab_size
        losses, correct = model.cross_entropy(batch, batch["predict_positions"], batch["predict_ids"], size, key)
        weights = batch["predict_weights"]
        return {
            "loss": (losses * weights).sum(),
            "weight": weights.sum(),
            "correct": (correct * weights).sum(),
            "tokens": (batch["segment_ids"] > 0).sum().astype(jnp.float32),
            "examples": batch["segment_ids"].max(-1).sum().astype(jnp.float32),
        }

    def evaluate(
        self, model: Any, batch: Mapping[str, jax.Array], key: None = None
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The sums of an evaluation's batch; nothing is kept of each token."""
        return self.loss(model, batch, key), {}

    def metrics(self, sums: Mapping[str, float], outputs: Any = None) -> dict[str, float]:
        """Mean cross-entropy, its exponential, and the share of hidden tokens that were named."""
        return token_metrics(sums)

    def metric_names(self) -> list[str]:
        return ["loss", "perplexity", "accuracy"]

    def probe(self, model: Any) -> dict[str, np.ndarray]:
        batch, size = probe_batch(self), self.tokenizer.vocab_size
        logits = model(batch, jnp.asarray(batch["positions"]), size)[..., :size]
        states = jnp.stack(model.hidden_states(batch))
        return {"hidden states": np.asarray(states, np.float32), "logits": np.asarray(logits)}

    def flops_per_row(self) -> int:
        """Floating-point operations of the matrix products of one forward pass over a training row."""
        data = self.config.data
        return self.head.flops(self.model_config, data.seq_len, math.ceil(data.mask_rate * data.seq_len))

    # ---- predictions

    def predict(self, model: nnx.Module, lines: Iterator[str], options: FillMaskOptions) -> Iterator[dict[str, Any]]:
        """For each line its text and, for each `[MASK]` in it, the likeliest fillers with their probabilities."""
        if not 1 <= options.top_k <= self.tokenizer.vocab_size:
            mend = f"Give a number from 1 to the {self.tokenizer.vocab_size} pieces of the vocabulary."
            raise UserError("--top_k", options.top_k, mend)
        if options.batch_size < 1:
            raise UserError("--batch_size", options.batch_size, "Give a number above 0.")
        fill = jax.jit(functools.partial(self._fill, top_k=options.top_k))
        waiting: list[str] = []
        for line in lines:
            waiting.append(line)
            if len(waiting) == options.batch_size:
                yield from self._predict_lines(fill, model, waiting, options.batch_size)
                waiting = []
        if waiting:
            yield from self._predict_lines(fill, model, waiting, options.batch_size)

    def _fill(self, model: Any, batch: Batch, top_k: int) -> tuple[jax.Array, jax.Array]:
        logits = model(batch, batch["predict_positions"], self.tokenizer.vocab_size)
        return jax.lax.top_k(jax.nn.softmax(logits), top_k)

    def _predict_lines(
        self, fill: Callable[..., Any], model: Any, lines: list[str], batch_size: int
    ) -> Iterator[dict[str, Any]]:
        length, tokenizer = self.config.data.seq_len, self.tokenizer
        shape = (batch_size, length)
        tokens = np.full(shape, tokenizer.pad_id, np.int32)
        segment_ids = np.zeros(shape, np.int32)
        encoded = tokenizer.encode_batch(lines, keep_mask=True)
        for i, ids in enumerate(encoded):
            row = [tokenizer.cls_id, *ids[: length - 2], tokenizer.sep_id]
            tokens[i, : len(row)] = row
            segment_ids[i, : len(row)] = 1
        masks = [np.flatnonzero(row == tokenizer.mask_id) for row in tokens]
        most = length if max(map(len, masks)) > 8 else 8  # two shapes, so at most two compilations
        predict_positions = np.zeros((batch_size, most), np.int32)
        for i, found in enumerate(masks):
            predict_positions[i, : len(found)] = found
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
        batch = {
            "tokens": tokens,
            "segment_ids": segment_ids,
            "positions": positions,
            "predict_positions": predict_positions,
        }
        probabilities, ids = (np.asarray(x) for x in fill(model, batch))
        for i, line in enumerate(lines):
            result: dict[str, Any] = {"text": line, "masks": []}
            for j in range(len(masks[i])):
                fillers = zip(ids[i, j].tolist(), probabilities[i, j].tolist(), strict=True)
                result["masks"].append([{"token": tokenizer.token(t), "probability": round(p, 6)} for t, p in fillers])
            if len(encoded[i]) > length - 2:
                result["cut_tokens"] = len(encoded[i]) - (length - 2)
            yield result
