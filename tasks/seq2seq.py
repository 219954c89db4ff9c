"""From one text to another (Sutskever et al. 2014, arXiv:1409.3215): translation, and what is like it."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.cache import fingerprint
from data.corpus import tokenize_corpus
from data.packing import OPEN, gather_rows, pack_pairs
from data.pipeline import Batch, Rows
from data.sources import Source, joined
from data.tokenizer import IDEOGRAPH, Tokenizer, make_tokenizer
from errors import UserError
from models.decoding import Beams, Choice, Prompt, Texts, decode, read_beams, search_beams
from models.seq2seq import decoder_config
from models.transformer import empty_caches
from models.vocabulary import NEVER
from tasks.attention import attention_figures, save_figures, watch
from tasks.lines import answer_in_order, bucket, probe_batch, with_cut
from tasks.text import (
    EXAMPLES,
    Log,
    TextTask,
    first_text,
    load_run_tokenizer,
    open_split,
    open_splits,
    token_metrics,
)

PICTURED = 32  # tokens of a text whose attention is drawn in an evaluation
SHOWN = 20  # translations that eval.py shows beside their references
LONGER = 2  # a translation has at most so many times the source's tokens, …
AT_LEAST = 16  # … or so many


@dataclasses.dataclass(frozen=True)
class TranslateOptions:
    """The flags that predict.py takes for this task."""

    beams: int = 1  # texts that a beam search follows; 1: greedy
    length_penalty: float = 0.6  # how much a beam search forgives long texts; 0: not at all
    max_tokens: int = 0  # the most tokens of a translation; 0: by the length of its source
    temperature: float = 0.0  # 0: always the likeliest token
    top_k: int = 0  # draw among so many of the likeliest; 0: all
    top_p: float = 1.0  # draw among the likeliest that together have this probability
    seed: int = 0  # of the draws
    batch_size: int = 32  # lines that are computed together
    attention: str = ""  # a folder for pictures of what each translation looked at


class Seq2Seq(TextTask):
    """Owns the tokenizers of both sides, or the one that they share."""

    Options = TranslateOptions

    def __init__(self, config: Any, tokenizer: Tokenizer, log: Log = print, target_tokenizer: Tokenizer | None = None):
        data, model = config.data, config.model
        self.target_tokenizer = target_tokenizer or tokenizer
        data.target_vocabulary_hash = target_tokenizer.vocabulary_hash if target_tokenizer else ""
        if target_tokenizer and target_tokenizer.vocabulary_hash != tokenizer.vocabulary_hash:
            model.target_vocab_size = model.target_vocab_size or -(-target_tokenizer.vocab_size // 64) * 64
        model.max_positions = model.max_positions or max(data.seq_len, data.source_len)
        super().__init__(config, tokenizer, log)

    @classmethod
    def create(cls, config: Any, log: Log, origin: Any = None) -> "Seq2Seq":
        """For a new run: tokenizers by the training split, and the length of the sources' rows by the tokens."""
        cls.check(config)
        data = config.data
        sides = [open_splits(config, side, by="source")[0] for side in ("source", "target")]
        target_tokenizer = None
        if origin is not None:
            tokenizer, target_tokenizer = origin.tokenizer, origin.target_tokenizer
        elif data.target_tokenizer:
            tokenizer = make_tokenizer(data.tokenizer, sides[0], log)
            target_tokenizer = make_tokenizer(data.target_tokenizer, sides[1], log, "config.data.target_tokenizer")
        else:
            tokenizer = make_tokenizer(data.tokenizer, joined(*sides), log)
        if not data.source_len:
            tokenizers = tokenizer, target_tokenizer or tokenizer
            corpora = [tokenize_corpus(side, own, log) for side, own in zip(sides, tokenizers, strict=True)]
            places = [len(corpus.tokens) + len(corpus.offsets) - 1 for corpus in corpora]
            data.source_len = max(8, -(-round(data.seq_len * places[0] / places[1]) // 4) * 4)
        return cls(config, tokenizer, log, target_tokenizer)

    @classmethod
    def restore(cls, config: Any, folder: Path, log: Log) -> "Seq2Seq":
        tokenizer = load_run_tokenizer(folder / "tokenizer", config.data.vocabulary_hash)
        wanted = config.data.target_vocabulary_hash
        target_tokenizer = load_run_tokenizer(folder / "target_tokenizer", wanted) if wanted else None
        return cls(config, tokenizer, log, target_tokenizer)

    @staticmethod
    def check(config: Any) -> None:
        data = config.data
        if data.source == data.target:
            raise UserError("config.data.target", f"{data.target!r}, as config.data.source", "Name another column.")
        if not 0 <= data.label_smoothing < 1:
            raise UserError("config.data.label_smoothing", data.label_smoothing, "Give a share from 0 to below 1.")
        if data.eval_beams < 1:
            raise UserError("config.data.eval_beams", data.eval_beams, "Give a number above 0.")

    def save(self, folder: Path) -> None:
        super().save(folder)
        if self.target_tokenizer is not self.tokenizer:
            self.target_tokenizer.save(folder / "target_tokenizer")

    def examples(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        def side(name: str, tokenizer: Tokenizer, row: int) -> str:
            return first_text(tokenizer, batch[f"{name}_tokens"][row], batch[f"{name}_segment_ids"][row])

        rows = range(min(EXAMPLES, len(batch["source_tokens"])))
        return [f"{side('source', self.tokenizer, i)} → {side('target', self.target_tokenizer, i)}" for i in rows]

    # ---- rows

    def rows(self, split: str, source: str = "") -> Rows:
        """The pairs of `train`, `valid`, `test`, or of another source, several in a row."""
        data = self.config.data
        sides = self._open_sides(split, source)
        own, other = self.tokenizer, self.target_tokenizer
        corpora = zip(sides, self._tokenizers, strict=True)
        sources, targets = (tokenize_corpus(side, tokenizer, self.log) for side, tokenizer in corpora)
        for side, corpus in zip(sides, (sources, targets), strict=True):
            empty = np.flatnonzero(np.diff(corpus.offsets) == 0)
            if len(empty):
                raise UserError(side.where(int(empty[0])), "has an empty side", "Leave the pair out.")
        of_source, of_target, pairs = pack_pairs(sources.offsets, targets.offsets, data.source_len, data.seq_len)

        def load(rows: np.ndarray, epochs: np.ndarray) -> Batch:
            seen = gather_rows(sources.tokens, of_source, rows, pad_id=own.pad_id, sep_id=own.sep_id)
            told = gather_rows(targets.tokens, of_target, rows, pad_id=other.pad_id, cls_id=other.cls_id)
            labels = gather_rows(targets.tokens, of_target, rows, pad_id=other.pad_id, sep_id=other.sep_id)["tokens"]
            batch = {f"source_{name}": array for name, array in seen.items()}
            batch |= {f"target_{name}": array for name, array in told.items()}
            return batch | {"labels": labels, "weights": (told["segment_ids"] > 0).astype(np.float32)}

        def records(rows: np.ndarray) -> np.ndarray:
            return np.sort(
                np.concatenate([pairs[of_source.row_offsets[r] : of_source.row_offsets[r + 1]] for r in rows])
            )

        cut = int(((np.diff(sources.offsets) >= data.source_len) | (np.diff(targets.offsets) >= data.seq_len)).sum())
        summary = (
            f"{len(pairs):,} pairs · {len(sources.tokens):,} and {len(targets.tokens):,} tokens"
            f" · {len(of_source):,} rows of {data.source_len} and {data.seq_len}"
            f" · {of_source.padding:.1%} and {of_target.padding:.1%} padding"
        )
        summary += f" · {cut:,} cut" if cut else ""
        key = fingerprint(sources.fingerprint, targets.fingerprint, data.source_len, data.seq_len, OPEN)
        return Rows(count=len(of_source), load=load, records=records, fingerprint=key, summary=summary)

    @property
    def _tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        return self.tokenizer, self.target_tokenizer

    def _open_sides(self, split: str, source: str = "") -> list[Source]:
        return [open_split(self.config, split, source, side, by="source") for side in ("source", "target")]

    # ---- loss and metrics

    def loss(self, model: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> dict[str, jax.Array]:
        """Sums: `loss` (in nats), `correct` over the `weight` tokens of the targets; `tokens`, the same; `examples`."""
        return self._sums(model, batch, key, self.config.data.label_smoothing)

    def evaluate(
        self, model: Any, batch: Mapping[str, jax.Array], key: None = None
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The sums of an evaluation's batch, the loss without smoothing; nothing is kept of each token."""
        return self._sums(model, batch, key, 0.0), {}

    def _sums(
        self, model: Any, batch: Mapping[str, jax.Array], key: jax.Array | None, smoothing: float
    ) -> dict[str, jax.Array]:
        size = self.target_tokenizer.vocab_size
        losses, correct = model.cross_entropy(batch, batch["labels"], size, key, smoothing)
        weights = batch["weights"]
        return {
            "loss": (losses * weights).sum(),
            "weight": weights.sum(),
            "correct": (correct * weights).sum(),
            "tokens": weights.sum(),
            "examples": batch["target_segment_ids"].max(-1).sum().astype(jnp.float32),
        }

    def metrics(self, sums: Mapping[str, float], outputs: Any = None) -> dict[str, float]:
        """Mean cross-entropy of a target's token, its exponential, and the share of tokens that were named."""
        return token_metrics(sums)

    def metric_names(self) -> list[str]:
        return ["loss", "perplexity", "accuracy"]

    def measure_texts(self, model: nnx.Module, split: str, source: str = "") -> tuple[dict[str, float], dict[str, Any]]:
        """BLEU, chrF and exact matches of the translations of a whole split; and the first of them, side by side."""
        from evaluation.translation import signatures, translation

        sides = self._open_sides(split, source)
        texts, references = ([side[i]["text"].strip() for i in range(len(side))] for side in sides)
        options = TranslateOptions(beams=self.config.data.eval_beams)
        said = [answer["translation"] for answer in self.predict(model, iter(texts), options)]
        chinese = sum(bool(IDEOGRAPH.search(text)) for text in references) > len(references) / 2
        shown = [
            {"source": text, "reference": reference, "translation": answer}
            for text, reference, answer in zip(texts, references, said, strict=True)
        ][:SHOWN]
        for pair in shown:
            self.log("\n".join(f"{name:12} {text}" for name, text in pair.items()) + "\n")
        details: dict[str, Any] = {**signatures(chinese), "beams": options.beams, "translations": shown}
        kinds = [str(sides[0][i].get("kind", "")) for i in range(len(said))]
        if all(kinds):
            right = np.array([answer == reference for answer, reference in zip(said, references, strict=True)])
            of_kind = np.array(kinds)
            details["exact_match_by_kind"] = {kind: float(right[of_kind == kind].mean()) for kind in sorted(set(kinds))}
        return translation(said, references, chinese), details

    def pictures(self, outputs: Any, model: nnx.Module) -> dict[str, np.ndarray]:
        """What the first held-out target looks at in its source."""
        from evaluation.pictures import render

        sides = zip(self._open_sides("valid"), self._tokenizers, strict=True)
        ids = [tokenizer.encode_batch([side[0]["text"]])[0] for side, tokenizer in sides]
        longest = min(PICTURED, self.model_config.max_positions) - 1
        source = np.append(ids[0][:longest], np.int32(self.tokenizer.sep_id))
        figures = self._attention(model, source, ids[1][:longest].tolist())
        return {f"attention_{name}": render(figure) for name, figure in figures.items()}

    def _attention(self, model: Any, source: np.ndarray, target: list[int]) -> dict[str, Any]:
        """Figures of what the decoder looks at when it has read these tokens: row by row, at what it says them."""
        own, other = self.tokenizer, self.target_tokenizer
        batch = _padded("source", source, own.pad_id) | _padded("target", [other.cls_id, *target], other.pad_id)
        said, read = ([other.token(id) for id in ids] for ids in ([*target, other.sep_id], [other.cls_id, *target]))
        return attention_figures(watch(model, batch), said, read, [own.token(int(id)) for id in source])

    def probe(self, model: Any) -> dict[str, np.ndarray]:
        # The texts' tokens are source and target.
        batch = {f"{side}_{name}": x for name, x in probe_batch(self).items() for side in ("source", "target")}
        size = self.target_tokenizer.vocab_size
        states, logits = jnp.stack(model.hidden_states(batch)), model(batch, size)[..., :size]
        return {"hidden states": np.asarray(states, np.float32), "logits": np.asarray(logits)}

    def flops_per_row(self) -> int:
        """Floating-point operations of the matrix products of one forward pass over a training row."""
        return self.head.flops(self.model_config, self.config.data.source_len, self.config.data.seq_len)

    # ---- translations

    def predict(self, model: nnx.Module, lines: Iterator[str], options: TranslateOptions) -> Iterator[dict[str, Any]]:
        """For each line its `text`, the `translation`, its `score` and its number of `tokens`.

        The score is the translation's log-probability; of a beam search, as its length penalty makes it.
        """
        self._check_options(options)
        translate = jax.jit(functools.partial(self._translate, options=options), static_argnames="max_tokens")
        key = jax.random.key(options.seed)
        longest = self.model_config.max_positions
        own, other = self.tokenizer, self.target_tokenizer

        def encode(line: str) -> np.ndarray:
            return np.append(own.encode_batch([line])[0], np.int32(own.sep_id))

        def answer(items: list[tuple[int, str, np.ndarray]]) -> list[dict[str, Any]]:
            width = min(bucket(max(len(ids) for _, _, ids in items)), longest)
            filled = items + items[-1:] * (options.batch_size - len(items))  # what is there twice ends when it ends
            tokens = np.full((options.batch_size, width), own.pad_id, np.int32)
            for row, (_, _, ids) in enumerate(filled):
                tokens[row, : len(ids)] = ids[:width]
                tokens[row, min(len(ids), width) - 1] = own.sep_id
            lengths = np.array([min(len(ids), width) for _, _, ids in filled])
            positions = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
            batch = {"source_tokens": tokens, "source_positions": positions}
            batch["source_segment_ids"] = (positions < lengths[:, None]).astype(np.int32)
            most = options.max_tokens or min(max(AT_LEAST, LONGER * width), longest)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.array([number for number, _, _ in filled]))
            texts, scores = _read(jax.device_get(translate(model, batch, keys, max_tokens=most)), other.sep_id)
            if options.attention:
                for (number, _, ids), text in zip(items, texts, strict=False):
                    save_figures(self._attention(model, ids[:width], text), options.attention, number + 1)
            return [
                with_cut(
                    {
                        "text": line,
                        "translation": other.decode(text),
                        "score": round(float(score), 6),
                        "tokens": len(text),
                    },
                    len(ids) - int(length),
                )
                for (_, line, ids), text, score, length in zip(items, texts, scores, lengths, strict=False)
            ]

        numbered = ((number, line, encode(line)) for number, line in enumerate(lines))
        yield from answer_in_order(numbered, options.batch_size, lambda item: len(item[2]), answer)

    def _check_options(self, options: TranslateOptions) -> None:
        size, longest = self.target_tokenizer.vocab_size, self.model_config.max_positions
        Choice(options.temperature, options.top_k, options.top_p).check(size)
        if not 1 <= options.beams <= size:
            mend = f"Give a number from 1 to the {size} pieces of the vocabulary."
            raise UserError("--beams", options.beams, mend)
        if options.beams > 1 and options.temperature:
            raise UserError("--temperature", f"{options.temperature} with --beams", "Give one of the two.")
        if not options.length_penalty >= 0:
            raise UserError("--length_penalty", options.length_penalty, "Give 0 for none, or a number above.")
        if not 0 <= options.max_tokens <= longest:
            mend = f"Give a number up to the model's {longest} positions, or 0."
            raise UserError("--max_tokens", options.max_tokens, mend)

    def _translate(
        self, model: Any, batch: Batch, keys: jax.Array, options: TranslateOptions, max_tokens: int
    ) -> Texts | Beams:
        tokenizer = self.target_tokenizer
        rows = len(batch["source_tokens"])
        memories = model.remember(batch)
        there = (batch["source_segment_ids"] > 0)[:, None, None, :]
        unsaid = np.arange(model.logits_size) >= tokenizer.vocab_size  # entries that are never said
        unsaid[[id for id in tokenizer.special_ids if id != tokenizer.sep_id]] = True

        make_logits = model.make_logits(tokenizer.vocab_size)

        def advance(tokens: Any, positions: Any, visible: Any, caches: Any, slot: Any) -> Any:
            hidden, caches = model.advance(tokens, positions, visible, caches, slot, memories, there)
            return jnp.where(unsaid, NEVER, make_logits(hidden)), caches

        def make_caches(slots: int) -> Any:
            return empty_caches(decoder_config(self.model_config), rows, slots, model.dtype)

        start = jnp.full(rows, tokenizer.cls_id)
        ending: dict[str, Any] = {"max_tokens": max_tokens, "end_id": tokenizer.sep_id}
        if options.beams > 1:
            penalty = options.length_penalty
            return search_beams(advance, make_caches, start, beams=options.beams, length_penalty=penalty, **ending)
        choice = Choice(options.temperature, options.top_k, options.top_p)
        prompt = Prompt(start[:, None], jnp.ones(rows, jnp.int32))
        return decode(advance, make_caches, prompt, choice, keys, **ending)


def _padded(side: str, ids: Sequence[int] | np.ndarray, pad_id: int) -> Batch:
    """One text as a batch of one row, in a width of which there are few to compile."""
    width = bucket(len(ids))
    tokens = np.full((1, width), pad_id, np.int32)
    tokens[0, : len(ids)] = ids
    positions = np.arange(width, dtype=np.int32)[None]
    there = (positions < len(ids)).astype(np.int32)
    return {f"{side}_tokens": tokens, f"{side}_positions": positions * there, f"{side}_segment_ids": there}


def _read(found: Texts | Beams, end_id: int) -> tuple[list[list[int]], np.ndarray]:
    """The tokens of each text without its end, and its score."""
    if isinstance(found, Beams):
        return read_beams(found)
    texts = [row[:length].tolist() for row, length in zip(found.tokens, found.lengths, strict=True)]
    return [text[:-1] if text[-1:] == [end_id] else text for text in texts], np.asarray(found.scores)
