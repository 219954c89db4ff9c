"""Metrics of regression, through scikit-learn and scipy."""

import math
import warnings

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score


def regression(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """How near `predictions` are to `targets`, both float [examples]: errors, and correlations from -1 to 1.

    What is undefined is NaN, without a warning: `r2` of constant targets, `pearson` and `spearman` where either is
    constant (so these three of a single example), and all where a number is not finite.

    Raises:
        ValueError: the shapes are not the same [examples], or there is no example.
    """
    predictions, targets = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    if predictions.shape != targets.shape or targets.ndim != 1:
        raise ValueError(f"predictions {predictions.shape} and targets {targets.shape} do not belong together")
    if not len(targets):
        raise ValueError("there is no example to measure")
    names = ("mean_squared_error", "mean_absolute_error", "r2", "pearson", "spearman")
    numbers = dict.fromkeys(names, math.nan)
    if not np.isfinite([predictions, targets]).all():
        return numbers
    numbers["mean_squared_error"] = float(mean_squared_error(targets, predictions))
    numbers["mean_absolute_error"] = float(mean_absolute_error(targets, predictions))
    if np.ptp(targets) > 0:
        numbers["r2"] = float(r2_score(targets, predictions))
        if np.ptp(predictions) > 0:
            with warnings.catch_warnings(action="ignore"):  # scipy's, of inputs that are nearly constant
                numbers["pearson"] = float(pearsonr(predictions, targets).statistic)
            numbers["spearman"] = float(spearmanr(predictions, targets).statistic)
    return numbers
