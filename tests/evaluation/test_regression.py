import math

import numpy as np
import pytest

from evaluation.regression import regression

pytestmark = pytest.mark.filterwarnings("error")


def ranks(values: np.ndarray) -> np.ndarray:
    """Places from 1 on; equal values share the mean of theirs."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def test_errors_and_correlations_are_those_of_the_formulas():
    draw = np.random.default_rng(0)
    targets = np.round(draw.normal(size=100), 1)
    predictions = np.round(targets**3 + draw.normal(size=100), 1).astype(np.float32)
    difference = predictions.astype(float) - targets
    assert len(set(targets)) < 100 and len(set(predictions.tolist())) < 100  # ties
    numbers = regression(predictions, targets)
    assert numbers == pytest.approx(
        {
            "mean_squared_error": np.mean(difference**2),
            "mean_absolute_error": np.mean(np.abs(difference)),
            "r2": 1 - np.sum(difference**2) / np.sum((targets - targets.mean()) ** 2),
            "pearson": np.corrcoef(predictions, targets)[0, 1],
            "spearman": np.corrcoef(ranks(predictions), ranks(targets))[0, 1],
        }
    )
    assert all(type(number) is float for number in numbers.values())


def test_constant_targets_leave_only_the_errors():
    numbers = regression(np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.0, 2.0]))
    assert (numbers["mean_squared_error"], numbers["mean_absolute_error"]) == (5 / 3, 1)
    assert all(math.isnan(numbers[name]) for name in ("r2", "pearson", "spearman"))


def test_constant_predictions_have_no_correlation():
    numbers = regression(np.array([2.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert numbers["r2"] == 0 and math.isnan(numbers["pearson"]) and math.isnan(numbers["spearman"])


def test_nearly_constant_predictions_are_measured_without_a_warning():
    assert regression(np.array([1e8, 1e8, 1e8 + 2e-8]), np.array([1.0, 2.0, 3.0]))["spearman"] == pytest.approx(
        0.75**0.5
    )


def test_one_example_has_errors_alone():
    numbers = regression(np.array([3.0]), np.array([1.0]))
    assert (numbers["mean_squared_error"], numbers["mean_absolute_error"]) == (4, 2)
    assert all(math.isnan(numbers[name]) for name in ("r2", "pearson", "spearman"))


def test_a_number_that_is_not_finite_leaves_nothing_to_believe():
    for value in (math.nan, math.inf):
        numbers = regression(np.array([1.0, value, 3.0]), np.array([1.0, 2.0, 3.0]))
        assert len(numbers) == 5 and all(math.isnan(number) for number in numbers.values())


@pytest.mark.parametrize(
    ("predictions", "targets", "match"),
    [(np.ones((3, 1)), np.ones(3), "belong together"), (np.ones(3), np.ones(2), "belong"), (np.ones(0),) * 2 + ("no",)],
)
def test_what_does_not_belong_together_is_refused(predictions, targets, match):
    with pytest.raises(ValueError, match=match):
        regression(predictions, targets)
