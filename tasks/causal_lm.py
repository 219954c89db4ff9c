"""Language modelling (Radford et al. 2019): name the next token, and go on with a text."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.corpus import tokenize_corpus
from data.next_tokens import packed_batch, window_batch, window_count
from data.packing import pack
from data.pipeline import Batch, Rows
from errors import UserError
from models.decoding import Choice, Prompt, Texts, decode
from models.transformer import empty_caches
from models.vocabulary import NEVER
from tasks.attention import attention_figures, save_figures, watch
from tasks.lines import answer_in_order, bucket, probe_batch
from tasks.text import TextTask, open_split, token_metrics


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """The flags that predict.py takes for this task."""

    max_tokens: int = 64  # the most that a text goes on by
    temperature: float = 0.0  # 0: always the likeliest token
    top_k: int = 0  # draw among so many of the likeliest; 0: all
    top_p: float = 1.0  # draw among the likeliest that together have this probability
    seed: int = 0  # of the draws
    batch_size: int = 32  # lines that are computed together
    attention: str = ""  # a folder for pictures of what each text looked at


class CausalLM(TextTask):
    """Makes rows of documents or windows, and says what loss, metrics and continuations are."""

    Options = GenerateOptions

    # ---- rows

    def rows(self, split: str, source: str = "") -> Rows:
        """The packed documents, or the windows, of `train`, `valid`, `test`, or of another source."""
        data, tokenizer = self.config.data, self.tokenizer
        corpus = tokenize_corpus(open_split(self.config, split, source), tokenizer, self.log)
        documents, tokens = len(corpus.offsets) - 1, len(corpus.tokens)
        counts = f"{documents:,} documents · {tokens:,} tokens"
        fingerprint = f"{corpus.fingerprint}/{data.seq_len}/{'windows' if data.windows else 'packed'}"
        if data.windows:
            anywhere = split == "train" and not source

            def load(rows: np.ndarray, epochs: np.ndarray) -> Batch:
                drawn = {"epochs": epochs, "seed": self.config.seed} if anywhere else {}
                batch = window_batch(corpus, data.seq_len, rows, pad_id=tokenizer.pad_id, **drawn)
                return self._with_bytes(batch, corpus.bytes_of_text / max(tokens - 1, 1))

            count = window_count(corpus, data.seq_len)
            summary = f"{counts} · {count:,} windows of {data.seq_len}"
            return Rows(count, load, lambda rows: np.arange(documents), fingerprint, summary)

        packing = pack(corpus.offsets, data.seq_len, extra=1)

        def load_packed(rows: np.ndarray, epochs: np.ndarray) -> Batch:
            batch = packed_batch(corpus, packing, rows, end_id=tokenizer.sep_id, pad_id=tokenizer.pad_id)
            return self._with_bytes(batch, corpus.bytes_of_text / (tokens + int((np.diff(corpus.offsets) > 0).sum())))

        def records(rows: np.ndarray) -> np.ndarray:
            return packing.documents(rows, corpus.offsets)

        summary = f"{counts} · {len(packing):,} rows of {data.seq_len} · {packing.padding:.1%} padding"
        return Rows(len(packing), load_packed, records, fingerprint, summary)

    def _with_bytes(self, batch: Batch, per_label: float) -> Batch:
        """The batch with the `bytes` of text that the labels of each row stand for, float32 [rows].

        All rows together have exactly the bytes of the text; of some of them it is their share by labels.
        """
        return batch | {"bytes": (batch["weights"].sum(1) * per_label).astype(np.float32)}

    # ---- loss and metrics

    def loss(self, model: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> dict[str, jax.Array]:
        """Sums: `loss` (in nats) and `correct` over the `weight` labels; their `bytes`; `tokens`, `examples`."""
        losses, correct = model.cross_entropy(batch, batch["labels"], self.tokenizer.vocab_size, key)
        weights = batch["weights"]
        return {
            "loss": (losses * weights).sum(),
            "weight": weights.sum(),
            "correct": (correct * weights).sum(),
            "bytes": batch["bytes"].sum(),
            "tokens": (batch["segment_ids"] > 0).sum().astype(jnp.float32),
            "examples": batch["segment_ids"].max(-1).sum().astype(jnp.float32),
        }

    def evaluate(
        self, model: Any, batch: Mapping[str, jax.Array], key: None = None
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The sums of an evaluation's batch; nothing is kept of each token."""
        return self.loss(model, batch, key), {}

    def metrics(self, sums: Mapping[str, float], outputs: Any = None) -> dict[str, float]:
        """Mean cross-entropy of a token, its exponential, bits for a byte of text, share of tokens that were named."""
        return {**token_metrics(sums), "bits_per_byte": sums["loss"] / math.log(2) / max(sums["bytes"], 1e-9)}

    def metric_names(self) -> list[str]:
        return ["loss", "perplexity", "accuracy", "bits_per_byte"]

    def probe(self, model: Any) -> dict[str, np.ndarray]:
        batch, size = probe_batch(self), self.tokenizer.vocab_size
        states = jnp.stack(model.hidden_states(batch))
        logits = model(batch, size)[..., :size]
        return {"hidden states": np.asarray(states, np.float32), "logits": np.asarray(logits)}

    def flops_per_row(self) -> int:
        """Floating-point operations of the matrix products of one forward pass over a training row."""
        return self.head.flops(self.model_config, self.config.data.seq_len)

    # ---- continuations

    def predict(self, model: nnx.Module, lines: Iterator[str], options: GenerateOptions) -> Iterator[dict[str, Any]]:
        """For each line its `text`, the `continuation`, its log-probability as `score`, and its number of `tokens`."""
        choice = Choice(options.temperature, options.top_k, options.top_p)
        choice.check(self.tokenizer.vocab_size)
        room = self.model_config.max_positions
        if not 1 <= options.max_tokens < room:
            mend = f"Give a number from 1 to {room - 1}: the model has {room} positions, and a prompt needs one."
            raise UserError("--max_tokens", options.max_tokens, mend)
        go_on = jax.jit(functools.partial(self._go_on, choice=choice, max_tokens=options.max_tokens))
        key = jax.random.key(options.seed)

        def encode(line: str) -> np.ndarray:
            ids = self.tokenizer.encode_batch([line])[0]
            start = [] if self.config.data.windows and len(ids) else [self.tokenizer.sep_id]
            prompt = np.concatenate([np.array(start, np.int32), ids])
            if len(prompt) + options.max_tokens > room:
                value = f"{len(prompt)} tokens and {options.max_tokens} more: {line[:40]!r}"
                raise UserError("--input", value, f"The model has {room} positions: shorten the prompt.")
            return prompt

        numbered = ((number, line, encode(line)) for number, line in enumerate(lines))

        def answer(batch: list[tuple[int, str, np.ndarray]]) -> list[dict[str, Any]]:
            width = bucket(max(len(prompt) for _, _, prompt in batch))
            filled = batch + batch[-1:] * (options.batch_size - len(batch))  # what is there twice ends when it ends
            tokens = np.full((options.batch_size, width), self.tokenizer.pad_id, np.int32)
            for row, (_, _, prompt) in enumerate(filled):
                tokens[row, -len(prompt) :] = prompt
            lengths = np.array([len(prompt) for _, _, prompt in filled])
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.array([number for number, _, _ in filled]))
            found = jax.device_get(go_on(model, Prompt(tokens, lengths), keys))
            if options.attention:
                for row, (number, _, prompt) in enumerate(batch):
                    text = np.concatenate([prompt, found.tokens[row, : found.lengths[row] - 1]])
                    save_figures(self._attention(model, text), options.attention, number + 1)
            return [self._answer(line, found, row) for row, (_, line, _) in enumerate(batch)]

        yield from answer_in_order(numbered, options.batch_size, lambda item: len(item[2]), answer)

    def _go_on(self, model: Any, prompt: Prompt, keys: jax.Array, choice: Choice, max_tokens: int) -> Texts:
        batch = len(prompt.tokens)
        tokenizer = self.tokenizer
        unsaid = np.arange(self.model_config.vocab_size) >= tokenizer.vocab_size  # entries that are never said
        unsaid[[id for id in tokenizer.special_ids if id != tokenizer.sep_id]] = True

        make_logits = model.make_logits(tokenizer.vocab_size)

        def advance(tokens: Any, positions: Any, visible: Any, caches: Any, slot: Any) -> Any:
            hidden, caches = model.advance(tokens, positions, visible, caches, slot)
            return jnp.where(unsaid, NEVER, make_logits(hidden[:, -1:])), caches

        def make_caches(slots: int) -> Any:
            return empty_caches(self.model_config, batch, slots, model.dtype)

        return decode(advance, make_caches, prompt, choice, keys, max_tokens=max_tokens, end_id=tokenizer.sep_id)

    def _attention(self, model: Any, text: np.ndarray) -> dict[str, Any]:
        """Figures of what each token looks at."""
        ids = text[: self.model_config.max_positions]
        tokens = np.full((1, bucket(len(ids))), self.tokenizer.pad_id, np.int32)
        tokens[0, : len(ids)] = ids
        positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
        there = (positions < len(ids)).astype(np.int32)
        watched = watch(model, {"tokens": tokens, "segment_ids": there, "positions": positions * there})
        names = [self.tokenizer.token(int(id)) for id in ids]
        return attention_figures(watched, names, names)

    def _answer(self, line: str, found: Texts, row: int) -> dict[str, Any]:
        ids = found.tokens[row, : found.lengths[row]]
        continuation = self.tokenizer.decode(ids[ids != self.tokenizer.sep_id])
        return {
            "text": line,
            "continuation": continuation,
            "score": round(float(found.scores[row]), 6),
            "tokens": int(found.lengths[row]),
        }
