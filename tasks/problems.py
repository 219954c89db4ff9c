"""What a label can be, `config.data.problem`: one of several classes, any of several, or a number.

Each kind says how its targets are read, what its loss is, what an answer looks like and how it is measured.
scikit-learn and matplotlib take a second to load, so they are imported where they are used.
"""

import abc
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import labels as labelled
from data.sources import Source
from errors import UserError

Losses = tuple[jax.Array, jax.Array]  # of each text, and what it counts for; both [...]


class Problem(abc.ABC):
    """One kind of label.

    Args:
        data: `config.data` of the run; what `resolve` finds out is kept in it.
    """

    def __init__(self, data: Any):
        self.data = data

    @abc.abstractmethod
    def resolve(self, train: Source, outputs: int, inherited: tuple[str, ...]) -> int:
        """Learns from the training texts what the labels are; returns how many outputs the head needs.

        Args:
            outputs: how many the user expects; 0 for any number.
            inherited: the labels of a head that is taken over, in its order.
        """

    @abc.abstractmethod
    def targets(self, source: Source) -> np.ndarray:
        """The target of each record, [examples] or [examples, labels]."""

    @abc.abstractmethod
    def losses(self, logits: jax.Array, targets: jax.Array, class_weights: np.ndarray, smoothing: float) -> Losses:
        """The loss of each text; logits [..., outputs]."""

    def hits(self, logits: jax.Array, targets: jax.Array) -> jax.Array | None:
        """Whether each text is answered right, [...]; None where there is no right and wrong."""
        return None

    @abc.abstractmethod
    def scores(self, logits: jax.Array) -> jax.Array:
        """What predictions are made from, [..., outputs]: probabilities, or the number."""

    @abc.abstractmethod
    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Over all texts; scores [texts, outputs]."""

    @abc.abstractmethod
    def pictures(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """Figures, by name."""

    @abc.abstractmethod
    def answer(self, scores: np.ndarray) -> dict[str, Any]:
        """A prediction as JSON; scores [outputs]."""

    def class_weights(self, targets: np.ndarray) -> np.ndarray:
        """From `config.data.class_weights`, `balanced` or `LABEL:WEIGHT,…`, a number for each label."""
        if self.data.class_weights == "balanced":
            return self._balanced(targets).astype(np.float32)
        weights = dict.fromkeys(self.data.labels, 1.0)
        for part in filter(None, self.data.class_weights.split(",")):
            label, _, number = part.rpartition(":")
            if label not in weights or not _is_positive(number):
                mend = f"Give balanced, or LABEL:WEIGHT,… of the labels {', '.join(self.data.labels)[:200]}."
                raise UserError("config.data.class_weights", repr(part), mend)
            weights[label] = float(number)
        return np.array(list(weights.values()), np.float32)

    def _balanced(self, targets: np.ndarray) -> np.ndarray:
        """The weights that `balanced` stands for."""
        return np.ones(len(self.data.labels))

    def details(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """`per_class`: precision, recall, f1 and support of each label."""
        from evaluation import classification

        return {"per_class": classification.per_class(scores, targets, self.data.labels)}

    def _resolve_labels(self, found: Any, outputs: int, inherited: tuple[str, ...]) -> int:
        # A head that is taken over wants its labels in its own order.
        known = inherited if set(inherited) == set().union(*found) else ()
        self.data.labels = labelled.label_order(found, self.data.labels or known, outputs)
        return len(self.data.labels)

    def _probabilities(self, scores: np.ndarray) -> dict[str, float]:
        return {label: round(float(p), 6) for label, p in zip(self.data.labels, scores, strict=True)}


class Multiclass(Problem):
    """One label a text; targets int32 [examples]."""

    def resolve(self, train: Source, outputs: int, inherited: tuple[str, ...]) -> int:
        return self._resolve_labels(labelled.read_labels(train, self.data.label), outputs, inherited)

    def targets(self, source: Source) -> np.ndarray:
        return labelled.one_of(labelled.read_labels(source, self.data.label), self.data.labels, source)

    def losses(self, logits: jax.Array, targets: jax.Array, class_weights: np.ndarray, smoothing: float) -> Losses:
        """Cross-entropy, as PyTorch's: the loss of a class is multiplied by its weight, and the mean is over the true
        classes' weights; of the target, a share `smoothing` is spread evenly over all classes.
        """
        surprise = -jax.nn.log_softmax(logits) * class_weights
        of_target = jnp.take_along_axis(surprise, targets[..., None], axis=-1)[..., 0]
        return (1 - smoothing) * of_target + smoothing * surprise.mean(-1), jnp.asarray(class_weights)[targets]

    def hits(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        return logits.argmax(-1) == targets

    def scores(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits)

    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        from evaluation import classification

        return classification.multiclass(scores, targets, self.data.labels)

    def pictures(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        from evaluation import pictures

        labels = self.data.labels
        matrix = pictures.confusion_matrix(scores, targets, labels)
        return {"confusion_matrix": matrix, "roc_curve": pictures.roc_curves(scores, targets, labels)}

    def answer(self, scores: np.ndarray) -> dict[str, Any]:
        return {"label": self.data.labels[int(scores.argmax())], "probabilities": self._probabilities(scores)}

    def _balanced(self, targets: np.ndarray) -> np.ndarray:
        """As scikit-learn's: examples / (classes × examples of the class); a small sample may lack a class."""
        counts = np.maximum(np.bincount(targets, minlength=len(self.data.labels)), 1)
        return len(targets) / (len(counts) * counts)


class Multilabel(Problem):
    """Any number of labels a text; targets float32 0/1 [examples, labels]."""

    def resolve(self, train: Source, outputs: int, inherited: tuple[str, ...]) -> int:
        return self._resolve_labels(self._read(train), outputs, inherited)

    def targets(self, source: Source) -> np.ndarray:
        return labelled.any_of(self._read(source), self.data.labels, source)

    def losses(self, logits: jax.Array, targets: jax.Array, class_weights: np.ndarray, smoothing: float) -> Losses:
        """Binary cross-entropy, the mean over the labels. As PyTorch's `pos_weight`, the weights multiply what labels
        that are there contribute; `smoothing` draws the targets towards 1/2.
        """
        soft = targets * (1 - smoothing) + smoothing / 2
        losses = -class_weights * soft * jax.nn.log_sigmoid(logits) - (1 - soft) * jax.nn.log_sigmoid(-logits)
        return losses.mean(-1), jnp.ones(losses.shape[:-1])

    def hits(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        return ((logits >= 0) == (targets > 0.5)).all(-1)

    def scores(self, logits: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(logits)

    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        from evaluation import classification

        return classification.multilabel(scores, targets, self.data.labels)

    def pictures(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        from evaluation import pictures

        return {"roc_curve": pictures.roc_curves(scores, targets, self.data.labels)}

    def answer(self, scores: np.ndarray) -> dict[str, Any]:
        chosen = [label for label, p in zip(self.data.labels, scores, strict=True) if p >= 0.5]
        return {"labels": chosen, "probabilities": self._probabilities(scores)}

    def _balanced(self, targets: np.ndarray) -> np.ndarray:
        """Examples without the label / examples with it."""
        counts = np.maximum(targets.sum(0), 1)
        return (len(targets) - counts) / counts

    def _read(self, source: Source) -> list[tuple[str, ...]]:
        return labelled.read_labels(source, self.data.label, self.data.label_separator)


class Regression(Problem):
    """A number a text; targets float32 [examples].

    It is learned on targets of mean 0 and deviation 1. `data.target_mean` and `data.target_scale`, those of the
    training targets, are kept, and metrics and answers are in the user's own units.
    """

    def resolve(self, train: Source, outputs: int, inherited: tuple[str, ...]) -> int:
        numbers = labelled.read_numbers(train, self.data.label)
        self.data.target_mean, self.data.target_scale = float(numbers.mean()), float(numbers.std()) or 1.0
        return 1

    def targets(self, source: Source) -> np.ndarray:
        numbers = labelled.read_numbers(source, self.data.label)
        return (numbers - np.float32(self.data.target_mean)) / np.float32(self.data.target_scale)

    def losses(self, logits: jax.Array, targets: jax.Array, class_weights: np.ndarray, smoothing: float) -> Losses:
        """The squared error."""
        return jnp.square(logits[..., 0] - targets), jnp.ones_like(targets)

    def scores(self, logits: jax.Array) -> jax.Array:
        return logits

    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        from evaluation import regression

        return regression.regression(self._in_units(scores[:, 0]), self._in_units(targets))

    def pictures(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        from evaluation import pictures

        return {"predictions": pictures.scatter(self._in_units(scores[:, 0]), self._in_units(targets))}

    def answer(self, scores: np.ndarray) -> dict[str, Any]:
        return {"value": float(self._in_units(scores[0]))}

    def details(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        return {}

    def class_weights(self, targets: np.ndarray) -> np.ndarray:
        return np.ones(1, np.float32)

    def _in_units(self, numbers: np.ndarray) -> np.ndarray:
        return numbers * self.data.target_scale + self.data.target_mean


PROBLEMS: dict[str, type[Problem]] = {"multiclass": Multiclass, "multilabel": Multilabel, "regression": Regression}


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
