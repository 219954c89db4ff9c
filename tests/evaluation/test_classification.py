import math

import numpy as np
import pytest
import sklearn.metrics

from evaluation.classification import multiclass, multilabel, per_class

pytestmark = pytest.mark.filterwarnings("error")

LABELS = [f"class {i}" for i in range(30)]


def examples(classes: int, count: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with one decimal, so that many are equal, and targets that they have something to do with."""
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, classes, count)
    probabilities = np.round(draw.random((count, classes)) + 0.3 * np.eye(classes)[targets], 1)
    return probabilities.astype(np.float32), targets


def many_labels(count: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    targets = (draw.random((count, 4)) < [0.5, 0.3, 0.1, 0.7]).astype(int)
    return np.round(0.7 * draw.random((count, 4)) + 0.3 * targets, 1), targets


def pairs_ranked_right(score, has) -> float:
    """The area under the ROC curve as what it means: an example that has it lies above one that has not."""
    pairs = [(a > b) + 0.5 * (a == b) for a in score[has == 1] for b in score[has == 0]]
    return float(np.mean(pairs))


def area_under_precision(score, has) -> float:
    """Average precision: the precision at each threshold, weighted by the recall that is won there."""
    area, before = 0.0, 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        found = has[score >= threshold]
        area += (found.sum() / has.sum() - before) * found.mean()
        before = found.sum() / has.sum()
    return float(area)


def counted(guessed, has) -> tuple[float, float, float, int]:
    """Precision, recall, F1 and support, counted example by example."""
    hits = sum(1 for g, h in zip(guessed, has, strict=True) if g and h)
    precision = hits / sum(guessed) if sum(guessed) else 0.0
    recall = hits / sum(has) if sum(has) else 0.0
    f1 = 2 * hits / (sum(guessed) + sum(has)) if sum(guessed) + sum(has) else 0.0
    return precision, recall, f1, sum(has)


def counted_by_class(guesses, targets, classes) -> np.ndarray:
    """[classes, 4]"""
    return np.array([counted((guesses == k).tolist(), (targets == k).tolist()) for k in range(classes)])


def test_two_classes_are_measured_by_the_second():
    probabilities, targets = examples(2)
    guesses = np.array([0 if first >= second else 1 for first, second in probabilities])
    assert (probabilities[:, 0] == probabilities[:, 1]).any()
    by_class = counted_by_class(guesses, targets, 2)
    numbers = multiclass(probabilities, targets, ["no", "yes"])
    assert numbers == pytest.approx(
        {
            "accuracy": np.mean(guesses == targets),
            **dict(zip(("precision", "recall", "f1"), by_class[1], strict=False)),
            **dict(zip(("precision_macro", "recall_macro", "f1_macro"), by_class.mean(0), strict=False)),
            "f1_micro": np.mean(guesses == targets),
            "roc_auc": pairs_ranked_right(probabilities[:, 1], targets),
            "average_precision": area_under_precision(probabilities[:, 1], targets),
            "matthews_corrcoef": np.corrcoef(targets, guesses)[0, 1],
        },
        abs=1e-12,
    )
    assert all(type(number) is float for number in numbers.values())


def test_more_classes_are_measured_by_the_mean_over_all():
    probabilities, targets = examples(5)
    guesses, one_hot = probabilities.argmax(1), np.eye(5)[targets]
    means = counted_by_class(guesses, targets, 5).mean(0)
    guessed, has = np.eye(5)[guesses] - np.eye(5)[guesses].mean(0), one_hot - one_hot.mean(0)
    assert multiclass(probabilities, targets, LABELS[:5]) == pytest.approx(
        {
            "accuracy": np.mean(guesses == targets),
            **dict(zip(("precision", "recall", "f1"), means, strict=False)),
            **dict(zip(("precision_macro", "recall_macro", "f1_macro"), means, strict=False)),
            "f1_micro": np.mean(guesses == targets),
            "roc_auc": np.mean([pairs_ranked_right(probabilities[:, k], one_hot[:, k]) for k in range(5)]),
            "average_precision": np.mean([area_under_precision(probabilities[:, k], one_hot[:, k]) for k in range(5)]),
            # Gorodkin 2004: the correlation of two tables of classes
            "matthews_corrcoef": (guessed * has).sum() / math.sqrt((guessed**2).sum() * (has**2).sum()),
        },
        abs=1e-12,
    )


def test_the_numbers_are_scikit_learns():
    probabilities, targets = examples(3)
    probabilities = probabilities.astype(float) / probabilities.sum(1, keepdims=True)
    numbers = multiclass(probabilities, targets, LABELS[:3])
    report = sklearn.metrics.classification_report(targets, probabilities.argmax(1), output_dict=True)
    assert numbers["accuracy"] == pytest.approx(report["accuracy"])
    assert numbers["f1_macro"] == pytest.approx(report["macro avg"]["f1-score"])
    assert numbers["roc_auc"] == pytest.approx(
        sklearn.metrics.roc_auc_score(targets, probabilities, multi_class="ovr", average="macro")
    )
    assert numbers["average_precision"] == pytest.approx(
        sklearn.metrics.average_precision_score(targets, probabilities, average="macro")
    )


def test_a_class_that_does_not_occur_counts_as_zero_in_the_means_and_has_no_ranking():
    probabilities, targets = examples(3)
    wider = np.hstack([probabilities, np.zeros((len(targets), 1))])
    three, four = multiclass(probabilities, targets, LABELS[:3]), multiclass(wider, targets, LABELS[:4])
    for name in ("precision", "recall", "f1"):
        assert four[name] == four[f"{name}_macro"] == pytest.approx(three[name] * 3 / 4)
    for name in ("accuracy", "roc_auc", "average_precision", "matthews_corrcoef"):
        assert four[name] == pytest.approx(three[name])


@pytest.mark.parametrize(("classes", "right"), [(1, True), (2, True), (2, False), (3, True), (3, False)])
def test_one_class_alone_has_no_ranking(classes, right):
    probabilities = np.eye(classes)[[0 if right else classes - 1] * 4]
    numbers = multiclass(probabilities, np.zeros(4, int), LABELS[:classes])
    assert {name for name, number in numbers.items() if math.isnan(number)} == {"roc_auc", "average_precision"}
    assert numbers["accuracy"] == numbers["f1_micro"] == float(right)
    assert numbers["matthews_corrcoef"] == 0
    assert numbers["f1_macro"] == pytest.approx(right / classes)


def test_only_the_second_class_has_no_ranking_either():
    numbers = multiclass(np.array([[0.2, 0.8], [0.6, 0.4]]), np.array([1, 1]), LABELS[:2])
    assert (numbers["precision"], numbers["recall"]) == (1, 0.5)
    assert math.isnan(numbers["roc_auc"]) and math.isnan(numbers["average_precision"])


def test_one_example_is_enough_for_what_needs_no_second():
    numbers = multiclass(np.array([[0.1, 0.2, 0.7]]), np.array([2]), LABELS[:3])
    assert numbers["accuracy"] == 1 and numbers["recall"] == pytest.approx(1 / 3)
    assert math.isnan(numbers["roc_auc"])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 2.0])
def test_many_labels_are_guessed_from_the_threshold_on(threshold):
    probabilities, targets = many_labels()
    guesses = (probabilities >= threshold).astype(int)
    assert threshold > 1 or (probabilities == threshold).any()
    by_label = np.array([counted(guesses[:, k].tolist(), targets[:, k].tolist()) for k in range(4)])
    whole = [row == wanted for row, wanted in zip(guesses.tolist(), targets.tolist(), strict=True)]
    assert multilabel(probabilities, targets, LABELS[:4], threshold) == pytest.approx(
        {
            "accuracy": np.mean(whole),
            **dict(zip(("precision", "recall", "f1"), by_label.mean(0), strict=False)),
            "f1_micro": counted(guesses.ravel().tolist(), targets.ravel().tolist())[2],
            "roc_auc": np.mean([pairs_ranked_right(probabilities[:, k], targets[:, k]) for k in range(4)]),
            "average_precision": np.mean([area_under_precision(probabilities[:, k], targets[:, k]) for k in range(4)]),
        },
        abs=1e-12,
    )


@pytest.mark.parametrize("count", [2, 4])
def test_the_numbers_of_many_labels_are_scikit_learns(count):
    probabilities, targets = (array[:, :count] for array in many_labels())
    numbers, guesses = multilabel(probabilities, targets, LABELS[:count]), (probabilities >= 0.5).astype(int)
    report = sklearn.metrics.classification_report(targets, guesses, output_dict=True, zero_division=0)
    assert numbers["f1"] == pytest.approx(report["macro avg"]["f1-score"])
    assert numbers["f1_micro"] == pytest.approx(report["micro avg"]["f1-score"])
    assert numbers["roc_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(targets, probabilities))
    assert numbers["accuracy"] == pytest.approx(1 - sklearn.metrics.zero_one_loss(targets, guesses))


def test_labels_that_nobody_or_everybody_has_have_no_ranking():
    probabilities, targets = many_labels()
    targets[:, 1], targets[:, 3] = 0, 1
    numbers = multilabel(probabilities, targets, LABELS[:4])
    assert numbers["roc_auc"] == pytest.approx(
        np.mean([pairs_ranked_right(probabilities[:, k], targets[:, k]) for k in (0, 2)])
    )
    none = multilabel(probabilities, np.zeros_like(targets), LABELS[:4])
    assert math.isnan(none["roc_auc"]) and math.isnan(none["average_precision"])
    assert (none["precision"], none["recall"], none["f1"], none["f1_micro"]) == (0, 0, 0, 0)


def test_a_single_label_is_not_taken_for_two_classes():
    probabilities, targets = np.array([[0.9], [0.8], [0.3], [0.1], [0.2]]), np.array([[1], [0], [1], [0], [0]])
    numbers = multilabel(probabilities, targets, ["only"])
    assert numbers == pytest.approx(
        {"accuracy": 0.6, "precision": 0.5, "recall": 0.5, "f1": 0.5, "f1_micro": 0.5}
        | {"roc_auc": 5 / 6, "average_precision": 5 / 6}
    )
    assert per_class(probabilities, targets, ["only"])["only"]["support"] == 2


def test_each_class_is_counted_by_itself():
    probabilities, targets = examples(5)
    targets[targets == 3] = 0
    rows = per_class(probabilities, targets, LABELS[:5])
    assert list(rows) == LABELS[:5] and rows["class 3"]["recall"] == rows["class 3"]["support"] == 0
    np.testing.assert_allclose(
        [list(row.values()) for row in rows.values()], counted_by_class(probabilities.argmax(1), targets, 5)
    )
    assert all(list(row) == ["precision", "recall", "f1", "support"] for row in rows.values())


def test_each_of_many_labels_is_counted_by_itself():
    probabilities, targets = many_labels()
    rows = per_class(probabilities, targets, LABELS[:4], threshold=0.7)
    for k, row in enumerate(rows.values()):
        guessed = (probabilities[:, k] >= 0.7).tolist()
        assert tuple(row.values()) == pytest.approx(counted(guessed, targets[:, k].tolist()))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_probability_that_is_not_finite_leaves_no_number_to_believe(value):
    probabilities, targets = examples(3)
    probabilities[7, 1] = value
    rows = per_class(probabilities, targets, LABELS[:3])
    assert all(math.isnan(number) for number in multiclass(probabilities, targets, LABELS[:3]).values())
    assert all(math.isnan(row["f1"]) for row in rows.values())
    assert sum(row["support"] for row in rows.values()) == 200
    has = np.eye(3, dtype=int)[targets]
    assert all(math.isnan(number) for number in multilabel(probabilities, has, LABELS[:3]).values())


@pytest.mark.parametrize(
    ("probabilities", "targets", "match"),
    [
        (np.ones((3, 2)), np.zeros(4, int), "belong together"),
        (np.ones((3, 4)), np.zeros(3, int), "belong together"),
        (np.ones((3, 2)), np.zeros((3, 1), int), "belong together"),
        (np.ones((0, 2)), np.zeros(0, int), "no example"),
        (np.ones((3, 2)), np.array([0, 1, 2]), "from 0 to 1"),
        (np.ones((3, 2)), np.array([0, 1, -1]), "from 0 to 1"),
        (np.ones((3, 2)), np.full((3, 2), 0.5), "from 0 to 1"),
    ],
)
def test_what_does_not_belong_together_is_refused(probabilities, targets, match):
    with pytest.raises(ValueError, match=match):
        per_class(probabilities, targets, ["no", "yes"])
