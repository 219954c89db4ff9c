"""Labels for texts or pairs of texts (Devlin et al. 2018, arXiv:1810.04805, section 4.1).

Several short texts share a row; each is read at its own [CLS]. What a label is, tasks/problems.py says.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data.cache import fingerprint
from data.corpus import tokenize_corpus
from data.examples import TRUNCATIONS, build_examples, gather_examples
from data.packing import pack
from data.pipeline import Batch, Rows
from data.tokenizer import Tokenizer, make_tokenizer
from errors import UserError
from tasks.lines import embed, line_batches, probe_batch, with_cut
from tasks.problems import PROBLEMS
from tasks.text import Log, TextTask, open_split, open_splits

HEAD = "classifier/"


@dataclasses.dataclass(frozen=True)
class ClassifyOptions:
    """The flags that predict.py takes for this task."""

    features: str = ""  # cls | mean: the embedding of each text instead
    batch_size: int = 32  # lines that are computed together


class Classification(TextTask):
    """Owns the labels beside the tokenizer; their order is saved in the config as `data.labels`."""

    Options = ClassifyOptions

    def __init__(self, config: Any, tokenizer: Tokenizer, log: Log = print):
        super().__init__(config, tokenizer, log)
        self.problem = PROBLEMS[config.data.problem](config.data)
        self.class_weights = np.ones(config.model.num_labels, np.float32)
        self._texts_per_row = 1

    @classmethod
    def create(cls, config: Any, log: Log, origin: Any = None) -> "Classification":
        """For a new run: the labels are those of the training split, or as `config.data.labels` orders them."""
        cls.check(config)
        data, model = config.data, config.model
        # All of the training split, also where a limit takes a sample of it: a held-out text may have a rare label.
        everything, _ = open_splits(config, limited=False)
        inherited = origin.labels if origin else ()
        model.num_labels = PROBLEMS[data.problem](data).resolve(everything, model.num_labels, inherited)
        other_labels = inherited != data.labels or data.problem == "regression"
        if origin and other_labels and origin.drop(HEAD):
            log(f"init_from: the classifier of {origin.name} is for other labels, and begins anew")
        train, _ = open_splits(config)
        tokenizer = origin.tokenizer if origin else make_tokenizer(data.tokenizer, train, log)
        task = cls(config, tokenizer, log)
        if data.class_weights:
            task.class_weights = task.problem.class_weights(task.problem.targets(train))
        return task

    @staticmethod
    def check(config: Any) -> None:
        data = config.data
        for name, choices in (("problem", tuple(PROBLEMS)), ("truncation", TRUNCATIONS)):
            if data[name] not in choices:
                raise UserError(f"config.data.{name}", repr(data[name]), f"Choose {', '.join(choices)}.")
        if not 0 <= data.label_smoothing < 1:
            raise UserError("config.data.label_smoothing", data.label_smoothing, "Give a share from 0 to below 1.")
        if not all(isinstance(label, str) for label in data.labels):
            raise UserError("config.data.labels", data.labels, "Give texts: \"('negative','positive')\".")
        for name in ("class_weights", "label_smoothing", "labels"):
            if data.problem == "regression" and data[name]:
                raise UserError(f"config.data.{name}", data[name], "Leave it out: a regression has no classes.")

    # ---- rows

    def rows(self, split: str, source: str = "") -> Rows:
        """The labelled texts of `train`, `valid`, `test`, or of another source, several in a row."""
        data = self.config.data
        records = open_split(self.config, split, source)
        first, second = tokenize_corpus(records, self.tokenizer, self.log), None
        if data.text_pair:
            others = open_split(self.config, split, source, key="text_pair")
            second = tokenize_corpus(others, self.tokenizer, self.log)
        targets = self.problem.targets(records)
        examples = build_examples(
            first,
            second,
            seq_len=data.seq_len,
            truncation=data.truncation,
            cls_id=self.tokenizer.cls_id,
            sep_id=self.tokenizer.sep_id,
        )
        packing = pack(examples.offsets, data.seq_len, extra=0)
        self._texts_per_row = max(self._texts_per_row, math.ceil(len(examples) / len(packing)))

        def load(rows: np.ndarray, epochs: np.ndarray) -> Batch:
            batch = gather_examples(examples, packing, rows, self.tokenizer.pad_id)
            index = batch.pop("example_index")
            return batch | {"targets": targets[np.maximum(index, 0)], "present": (index >= 0).astype(np.float32)}

        def numbers(rows: np.ndarray) -> np.ndarray:
            index = gather_examples(examples, packing, rows, self.tokenizer.pad_id)["example_index"]
            return np.unique(index[index >= 0])

        cut = f" · {examples.cut:,} cut to {data.truncation}" if examples.cut else ""
        summary = (
            f"{len(examples):,} examples · {len(examples.tokens):,} tokens · {len(packing):,} rows of {data.seq_len}"
            f" · {packing.padding:.1%} padding{cut}"
        )
        texts = first.fingerprint, second.fingerprint if second else ""
        key = fingerprint(*texts, data.seq_len, data.truncation, targets.tobytes())
        return Rows(count=len(packing), load=load, records=numbers, fingerprint=key, summary=summary)

    # ---- loss and metrics

    def loss(self, model: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> dict[str, jax.Array]:
        """Sums over the batch: `loss` over the `weight` of its texts; `tokens`, `examples`; `hits`, if any can be."""
        logits = model(batch, batch["first_positions"], key)
        return self._sums(logits, batch, self.class_weights, self.config.data.label_smoothing)

    def evaluate(
        self, model: Any, batch: Mapping[str, jax.Array], key: None = None
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The sums, the loss without smoothing or class weights; and `scores`, `targets`, `present` of each text."""
        logits = model(batch, batch["first_positions"], key)
        outputs = {"scores": self.problem.scores(logits), "targets": batch["targets"], "present": batch["present"]}
        return self._sums(logits, batch, np.ones_like(self.class_weights), 0.0), outputs

    def _sums(
        self, logits: jax.Array, batch: Mapping[str, jax.Array], class_weights: np.ndarray, smoothing: float
    ) -> dict[str, jax.Array]:
        present = batch["present"]
        losses, weights = self.problem.losses(logits, batch["targets"], class_weights, smoothing)
        sums = {
            "loss": (losses * present).sum(),
            "weight": (weights * present).sum(),
            "tokens": (batch["segment_ids"] > 0).sum().astype(jnp.float32),
            "examples": present.sum(),
        }
        hits = self.problem.hits(logits, batch["targets"])
        return sums if hits is None else sums | {"hits": (hits * present).sum()}

    def metrics(self, sums: Mapping[str, float], outputs: Mapping[str, np.ndarray] | None = None) -> dict[str, float]:
        """Mean loss and accuracy; of an evaluation all that scikit-learn and scipy say of its outputs."""
        values = {"loss": sums["loss"] / max(sums["weight"], 1e-9)}
        if outputs is not None:
            return values | self.problem.metrics(*_of_texts(outputs))
        return values | ({"accuracy": sums["hits"] / max(sums["examples"], 1.0)} if "hits" in sums else {})

    def metric_names(self) -> list[str]:
        """Found by measuring two texts."""
        scores = np.zeros((2, self.config.model.num_labels), np.float32)
        targets = scores if self.config.data.problem == "multilabel" else np.zeros(2, int)
        return ["loss", *self.problem.metrics(scores, targets)]

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return self.problem.details(*_of_texts(outputs))

    def pictures(self, outputs: Mapping[str, np.ndarray], model: nnx.Module) -> dict[str, np.ndarray]:
        from evaluation.pictures import render

        return {name: render(figure) for name, figure in self.problem.pictures(*_of_texts(outputs)).items()}

    def probe(self, model: Any) -> dict[str, np.ndarray]:
        batch, data = probe_batch(self), self.config.data
        logits = model(batch, jnp.zeros((len(batch["tokens"]), 1), jnp.int32)) * data.target_scale + data.target_mean
        states = jnp.stack(model.hidden_states(batch))
        return {"hidden states": np.asarray(states, np.float32), "logits": np.asarray(logits)}

    def flops_per_row(self) -> int:
        """Floating-point operations of the matrix products of one forward pass over a training row."""
        return self.head.flops(self.model_config, self.config.data.seq_len, self._texts_per_row)

    # ---- predictions

    def predict(self, model: nnx.Module, lines: Iterator[str], options: ClassifyOptions) -> Iterator[dict[str, Any]]:
        """For each line its `text` and its `label` with `probabilities`, its `labels` with them, or its `value`."""
        data = self.config.data
        settings: dict[str, Any] = {"truncation": data.truncation, "pair": bool(data.text_pair)}
        if options.features:
            yield from embed(self, model, lines, options.features, options.batch_size, **settings)
            return

        @jax.jit
        def compute(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            return self.problem.scores(model(batch, jnp.zeros((len(batch["tokens"]), 1), jnp.int32))[:, 0])

        for texts, batch, cut in line_batches(self, lines, options.batch_size, **settings):
            scores = np.asarray(compute(model, batch))
            for i, text in enumerate(texts):
                yield with_cut({"text": text} | self.problem.answer(scores[i]), cut[i])


def _of_texts(outputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets of the texts alone, without the empty places of the rows."""
    present = outputs["present"] > 0
    return outputs["scores"][present], outputs["targets"][present]
