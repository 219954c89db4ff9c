"""Metrics of classification, named and defined as scikit-learn names and defines them.

Every function takes `probabilities`, float [examples, classes], and `targets`: int [examples], the number of each one's
class; or, where an example may have several, 0 and 1 [examples, classes]. A number that is undefined is NaN, without a
warning: the ranking of one class only, and everything where a probability is not finite.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)


def multiclass(probabilities: np.ndarray, targets: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """Each example has exactly one class, int [examples]; the guess is the most probable, the first of equals.

    `precision`, `recall`, `f1`, `roc_auc` and `average_precision` are those of the second of two classes. Of more they
    are means: the first three over all classes, with 0 for one that nobody guessed or that does not occur; the last two
    over the classes that some targets have and some have not, each against the rest. `matthews_corrcoef` is 0 where
    all targets or all guesses are one class.

    Raises:
        ValueError: the shapes do not belong together, or there is no example, or a target is no class.
    """
    probabilities, targets, finite = checked(probabilities, targets, labels)
    guesses = probabilities.argmax(1)
    precision, recall, f1, _ = _precision_recall_f1(targets, guesses, len(labels))
    meant = slice(1, 2) if len(labels) == 2 else slice(None)
    several = len(np.union1d(targets, guesses)) > 1  # else scikit-learn gives 0 too, but warns
    numbers = {
        "accuracy": accuracy_score(targets, guesses),
        "precision": precision[meant].mean(),
        "recall": recall[meant].mean(),
        "f1": f1[meant].mean(),
        "precision_macro": precision.mean(),
        "recall_macro": recall.mean(),
        "f1_macro": f1.mean(),
        "f1_micro": f1_score(targets, guesses, labels=range(len(labels)), average="micro"),
        **_ranking(probabilities, targets),
        "matthews_corrcoef": matthews_corrcoef(targets, guesses) if several else 0.0,
    }
    return _floats(numbers, finite)


def multilabel(
    probabilities: np.ndarray, targets: np.ndarray, labels: Sequence[str], threshold: float = 0.5
) -> dict[str, float]:
    """Each example has any number of labels, 0 and 1 [examples, labels]; guessed are those from `threshold` on.

    `accuracy` is the share of examples with all labels right. `precision`, `recall` and `f1` are means over all labels,
    with 0 for one that nobody guessed or that does not occur; `f1_micro` counts every label of every example alike;
    `roc_auc` and `average_precision` are means over the labels that some examples have and some have not.

    Raises:
        ValueError: the shapes do not belong together, or there is no example, or a target is neither 0 nor 1.
    """
    probabilities, targets, finite = checked(probabilities, targets, labels)
    guesses = (probabilities >= threshold).astype(int)
    precision, recall, f1, _ = _precision_recall_f1(targets, guesses, len(labels))
    numbers = {
        "accuracy": accuracy_score(targets, guesses),
        "precision": precision.mean(),
        "recall": recall.mean(),
        "f1": f1.mean(),
        "f1_micro": f1_score(targets.ravel(), guesses.ravel(), zero_division=0),
        **_ranking(probabilities, targets),
    }
    return _floats(numbers, finite)


def per_class(
    probabilities: np.ndarray, targets: np.ndarray, labels: Sequence[str], threshold: float = 0.5
) -> dict[str, dict[str, float]]:
    """The `precision`, `recall`, `f1` and `support` (examples that have it) of each label, by its name.

    Args:
        threshold: as for `multilabel`; of no meaning where each example has one class.

    Raises:
        ValueError: as for `multiclass` and `multilabel`.
    """
    probabilities, targets, finite = checked(probabilities, targets, labels)
    guesses = probabilities.argmax(1) if targets.ndim == 1 else (probabilities >= threshold).astype(int)
    rows = zip(*_precision_recall_f1(targets, guesses, len(labels)), strict=True)
    return {
        label: _floats({"precision": precision, "recall": recall, "f1": f1}, finite) | {"support": int(support)}
        for label, (precision, recall, f1, support) in zip(labels, rows, strict=True)
    }


def one_vs_rest(probabilities: np.ndarray, targets: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """The rankings that are defined: (class, whether each example has it, its probability), the latter two [examples].

    Of two classes that exclude each other only the second is asked for: the first is its mirror image.
    """
    classes = probabilities.shape[1]
    has = targets == 1 if targets.ndim == 2 else targets[:, None] == np.arange(classes)
    first = 1 if targets.ndim == 1 and classes == 2 else 0
    return [
        (k, has[:, k], probabilities[:, k]) for k in range(first, classes) if has[:, k].any() and not has[:, k].all()
    ]


def checked(
    probabilities: np.ndarray, targets: np.ndarray, labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities as finite float64, targets as integers, and which examples were finite before: bool [examples].

    Raises:
        ValueError: the shapes do not belong together, or there is no example, or a target is out of range.
    """
    probabilities, given = np.asarray(probabilities, np.float64), np.asarray(targets)
    if probabilities.shape != (len(given), len(labels)) or given.shape not in (probabilities.shape, (len(given),)):
        shapes = f"probabilities {probabilities.shape}, targets {given.shape}"
        raise ValueError(f"{shapes} and {len(labels)} labels do not belong together")
    if not len(given):
        raise ValueError("there is no example to measure")
    targets = given.astype(np.int64)
    limit = len(labels) if targets.ndim == 1 else 2
    if (targets != given).any() or targets.min() < 0 or targets.max() >= limit:
        raise ValueError(f"targets must be whole numbers from 0 to {limit - 1}")
    return np.nan_to_num(probabilities), targets, np.isfinite(probabilities).all(1)


def _precision_recall_f1(targets: np.ndarray, guesses: np.ndarray, classes: int) -> tuple[np.ndarray, ...]:
    """Precision, recall, F1 and support, each [classes]."""
    wanted = range(classes)
    if targets.ndim == 2 and classes == 1:  # scikit-learn takes a single column of 0 and 1 for two classes
        targets, guesses, wanted = targets[:, 0], guesses[:, 0], range(1, 2)
    return precision_recall_fscore_support(targets, guesses, labels=wanted, average=None, zero_division=0)


def _ranking(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    contests = one_vs_rest(probabilities, targets)
    measures = {"roc_auc": roc_auc_score, "average_precision": average_precision_score}
    return {
        name: float(np.mean([measure(has, score) for _, has, score in contests])) if contests else math.nan
        for name, measure in measures.items()
    }


def _floats(numbers: Mapping[str, float], finite: np.ndarray) -> dict[str, float]:
    """The numbers, if all examples [examples] are finite: half of them would tell another story than the whole."""
    return {name: float(number) if finite.all() else math.nan for name, number in numbers.items()}
