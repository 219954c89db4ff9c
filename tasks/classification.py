"""Labels for texts or pairs of texts (Devlin et al. 2018, arXiv:1810.04805, section 4.1).

`config.data.problem` says what a label is: one of several classes (`multiclass`), any of several (`multilabel`), or a
number (`regression`). Several short texts share a row; each is read at its own [CLS].
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data import labels as labelled
from data.cache import fingerprint
from data.corpus import tokenize_corpus
from data.examples import TRUNCATIONS, build_examples, gather_examples
from data.packing import pack
from data.pipeline import Batch, Rows
from data.sources import Source
from data.tokenizer import Tokenizer, make_tokenizer
from errors import UserError
from tasks.lines import embed, line_batches, with_cut
from tasks.text import Log, TextTask, open_split, open_splits

PROBLEMS = ("multiclass", "multilabel", "regression")
HEAD = "classifier/"


@dataclasses.dataclass(frozen=True)
class ClassifyOptions:
    """The flags that predict.py takes for this task."""

    features: str = ""  # cls | mean: the embedding of each text instead
    batch_size: int = 32  # lines that are computed together


class Classification(TextTask):
    """Owns the labels beside the tokenizer; their order is saved in the config as `data.labels`.

    A regression is learned on targets of mean 0 and deviation 1; `data.target_mean` and `data.target_scale`, those of
    the training targets, are saved too, and all metrics and predictions are in the user's own units.
    """

    Options = ClassifyOptions

    def __init__(self, config: Any, tokenizer: Tokenizer, log: Log = print):
        super().__init__(config, tokenizer, log)
        data = config.data
        self.problem, self.labels = data.problem, tuple(data.labels)
        self.class_weights = np.ones(config.model.num_labels, np.float32)
        self._texts_per_row = 1

    @classmethod
    def create(cls, config: Any, log: Log, origin: Any = None) -> "Classification":
        """For a new run: the labels are those of the training split, or as `config.data.labels` orders them."""
        cls.check(config)
        data, model = config.data, config.model
        train, _ = open_splits(config)
        if data.problem == "regression":
            numbers = labelled.read_numbers(train, data.label)
            data.target_mean, data.target_scale = float(numbers.mean()), float(numbers.std()) or 1.0
            model.num_labels = 1
        else:
            # Also labels that a small sample lacks: a held-out text may have them.
            found = _read_labels(config, open_splits(config, limited=False)[0])
            # A head that is taken over wants its labels in its own order.
            inherited = origin.labels if origin and set(origin.labels) == set().union(*found) else ()
            data.labels = labelled.label_order(found, data.labels or inherited, model.num_labels)
            model.num_labels = len(data.labels)
        if origin is not None and (origin.labels != data.labels or data.problem == "regression") and origin.drop(HEAD):
            log(f"init_from: the classifier of {origin.name} is for other labels, and begins anew")
        tokenizer = origin.tokenizer if origin else make_tokenizer(data.tokenizer, train, log)
        task = cls(config, tokenizer, log)
        if data.class_weights:
            task.class_weights = _class_weights(data, task.targets(train))
        return task

    @staticmethod
    def check(config: Any) -> None:
        data = config.data
        for name, choices in (("problem", PROBLEMS), ("truncation", TRUNCATIONS)):
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
            others = open_split(self.config, split, source, text=data.text_pair)
            second = tokenize_corpus(others, self.tokenizer, self.log)
        targets = self.targets(records)
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

    def targets(self, source: Source) -> np.ndarray:
        """int32 [examples], float32 0/1 [examples, labels], or float32 [examples] of mean 0 and deviation 1."""
        data = self.config.data
        if self.problem == "regression":
            return (labelled.read_numbers(source, data.label) - data.target_mean) / data.target_scale
        found = _read_labels(self.config, source)
        make = labelled.one_of if self.problem == "multiclass" else labelled.any_of
        return make(found, self.labels, source)

    # ---- loss and metrics

    def loss(self, model: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> dict[str, jax.Array]:
        """Sums over the batch: `loss` over the `weight` of its texts; `correct`, `tokens`, `examples`."""
        logits = model(batch, batch["first_positions"], key)
        return self._sums(logits, batch, self.class_weights, self.config.data.label_smoothing)

    def evaluate(
        self, model: Any, batch: Mapping[str, jax.Array], key: None = None
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The sums, the loss without smoothing or class weights; and `scores`, `targets`, `present` of each text."""
        logits = model(batch, batch["first_positions"], key)
        outputs = {"scores": self.scores(logits), "targets": batch["targets"], "present": batch["present"]}
        return self._sums(logits, batch, np.ones_like(self.class_weights), 0.0), outputs

    def scores(self, logits: jax.Array) -> jax.Array:
        """Probabilities of the labels, or the number itself."""
        squash = {"multiclass": jax.nn.softmax, "multilabel": jax.nn.sigmoid, "regression": lambda x: x}
        return squash[self.problem](logits)

    def _sums(
        self, logits: jax.Array, batch: Mapping[str, jax.Array], class_weights: np.ndarray, smoothing: float
    ) -> dict[str, jax.Array]:
        targets, present = batch["targets"], batch["present"]
        if self.problem == "multiclass":
            losses, weights = softmax_losses(logits, targets, class_weights, smoothing)
            correct = logits.argmax(-1) == targets
        elif self.problem == "multilabel":
            losses, weights = sigmoid_losses(logits, targets, class_weights, smoothing), jnp.ones_like(present)
            correct = ((logits >= 0) == (targets > 0.5)).all(-1)
        else:
            losses, weights = jnp.square(logits[..., 0] - targets), jnp.ones_like(present)
            correct = jnp.zeros_like(present)
        return {
            "loss": (losses * present).sum(),
            "weight": (weights * present).sum(),
            "correct": (correct * present).sum(),
            "tokens": (batch["segment_ids"] > 0).sum().astype(jnp.float32),
            "examples": present.sum(),
        }

    def metrics(self, sums: Mapping[str, float], outputs: Mapping[str, np.ndarray] | None = None) -> dict[str, float]:
        """The mean loss; and of an evaluation all that scikit-learn and scipy say of its outputs."""
        values = {"loss": sums["loss"] / max(sums["weight"], 1e-9)}
        if outputs is not None:
            from evaluation import classification, regression  # scikit-learn takes a second to load

            scores, targets = self._known(outputs)
            if self.problem == "regression":
                return values | regression.regression(scores, targets)
            measure = classification.multiclass if self.problem == "multiclass" else classification.multilabel
            return values | measure(scores, targets, self.labels)
        if self.problem != "regression":
            values["accuracy"] = sums["correct"] / max(sums["examples"], 1.0)
        return values

    def metric_names(self) -> list[str]:
        scores = np.zeros((1, 2, self.config.model.num_labels), np.float32)
        first = scores[..., 0]
        targets = {"multiclass": first.astype(np.int32), "multilabel": scores, "regression": first}[self.problem]
        outputs = {"scores": scores, "targets": targets, "present": np.ones((1, 2), np.float32)}
        return list(self.metrics({"loss": 0.0, "weight": 2.0}, outputs))

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """`per_class`: precision, recall, f1 and support of each label."""
        from evaluation import classification

        if self.problem == "regression":
            return {}
        return {"per_class": classification.per_class(*self._known(outputs), self.labels)}

    def pictures(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        from evaluation import pictures

        known = self._known(outputs)
        if self.problem == "regression":
            return {"predictions": pictures.render(pictures.scatter(*known))}
        figures = {"roc_curve": pictures.roc_curves(*known, self.labels)}
        if self.problem == "multiclass":
            figures["confusion_matrix"] = pictures.confusion_matrix(*known, self.labels)
        return {name: pictures.render(figure) for name, figure in figures.items()}

    def _known(self, outputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Scores and targets of the texts alone, without the empty places; of a regression in the user's units."""
        present = outputs["present"] > 0
        scores, targets = outputs["scores"][present], outputs["targets"][present]
        if self.problem == "regression":
            mean, scale = self.config.data.target_mean, self.config.data.target_scale
            return scores[:, 0] * scale + mean, targets * scale + mean
        return scores, targets

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
            return self.scores(model(batch, jnp.zeros((len(batch["tokens"]), 1), jnp.int32))[:, 0])

        for texts, batch, cut in line_batches(self, lines, options.batch_size, **settings):
            scores = np.asarray(compute(model, batch))
            for i, text in enumerate(texts):
                yield with_cut({"text": text} | self._answer(scores[i]), cut[i])

    def _answer(self, scores: np.ndarray) -> dict[str, Any]:
        if self.problem == "regression":
            return {"value": float(scores[0] * self.config.data.target_scale + self.config.data.target_mean)}
        probabilities = {label: round(float(p), 6) for label, p in zip(self.labels, scores, strict=True)}
        if self.problem == "multiclass":
            return {"label": self.labels[int(scores.argmax())], "probabilities": probabilities}
        chosen = [label for label, p in zip(self.labels, scores, strict=True) if p >= 0.5]
        return {"labels": chosen, "probabilities": probabilities}


def softmax_losses(
    logits: jax.Array, targets: jax.Array, class_weights: np.ndarray, smoothing: float
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of each text and what it counts for, [...]; logits [..., classes], targets int [...].

    As PyTorch's `cross_entropy`: the loss of a class is multiplied by its weight, and the mean is over the weights of
    the true classes; of the target, a share `smoothing` is spread evenly over all classes.
    """
    surprise = -jax.nn.log_softmax(logits) * class_weights
    of_target = jnp.take_along_axis(surprise, targets[..., None], axis=-1)[..., 0]
    return (1 - smoothing) * of_target + smoothing * surprise.mean(-1), jnp.asarray(class_weights)[targets]


def sigmoid_losses(logits: jax.Array, targets: jax.Array, class_weights: np.ndarray, smoothing: float) -> jax.Array:
    """Binary cross-entropy, mean over the labels, [...]; logits and 0/1 targets [..., labels].

    The weights multiply what the labels that are there contribute; `smoothing` draws the targets towards 1/2.
    """
    soft = targets * (1 - smoothing) + smoothing / 2
    losses = -class_weights * soft * jax.nn.log_sigmoid(logits) - (1 - soft) * jax.nn.log_sigmoid(-logits)
    return losses.mean(-1)


def _read_labels(config: Any, source: Source) -> list[tuple[str, ...]]:
    separator = config.data.label_separator if config.data.problem == "multilabel" else ""
    return labelled.read_labels(source, config.data.label, separator)


def _class_weights(data: Any, targets: np.ndarray) -> np.ndarray:
    """From `balanced` or `LABEL:WEIGHT,…` a number for each label.

    `balanced` as scikit-learn's: examples / (classes × examples of the class); of several labels at once, examples
    without the label / examples with it.
    """
    several = targets.ndim == 2
    if data.class_weights == "balanced":
        counts = targets.sum(0) if several else np.bincount(targets, minlength=len(data.labels))
        counts = np.maximum(counts, 1)  # a small sample may lack a label
        return ((len(targets) - counts) / counts if several else len(targets) / (len(counts) * counts)).astype(
            np.float32
        )
    weights = dict.fromkeys(data.labels, 1.0)
    for part in data.class_weights.split(","):
        label, _, number = part.rpartition(":")
        if label not in weights or not _is_positive(number):
            mend = f"Give balanced, or LABEL:WEIGHT pairs with commas between; labels: {', '.join(data.labels)[:200]}."
            raise UserError("config.data.class_weights", repr(part), mend)
        weights[label] = float(number)
    return np.array(list(weights.values()), np.float32)


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
