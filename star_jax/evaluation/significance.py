"""Is a difference more than chance: paired AUC and per-query comparisons, many at once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import stats

from star_jax.evaluation.auc import clustered_variance, normal_quantile, placements


class Difference(NamedTuple):
    """First minus second, its interval, and the two-sided p-value of no difference."""

    difference: float
    error: float  # Standard; infinite where there are too few clusters to tell.
    low: float
    high: float
    p_value: float


def auc_difference(
    labels: Bool[np.ndarray, " B"],
    first: Float[np.ndarray, " B"],
    second: Float[np.ndarray, " B"],
    clusters: Shaped[np.ndarray, " B"],
    level: float,
) -> Difference:
    """Compares two models on the same examples (DeLong 1988, clusters as Obuchowski 1997)."""
    one, other = placements(labels, first), placements(labels, second)
    variance = clustered_variance(labels, one.influence - other.influence, clusters)
    return _normal(one.auc - other.auc, variance**0.5, level)


def mean_difference(
    first: Float[np.ndarray, " Q"], second: Float[np.ndarray, " Q"], level: float
) -> Difference:
    """Compares two models by a metric that has one value per query."""
    paired = first - second
    if len(paired) < 2:
        return _normal(float(paired.mean()), float("inf"), level)
    return _normal(float(paired.mean()), float(paired.std(ddof=1)) / len(paired) ** 0.5, level)


def holm(p_values: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Adjusts p-values of tests made together: rejecting below a keeps any false alarm below a."""
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values), np.float64)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def _normal(difference: float, error: float, level: float) -> Difference:
    if error == 0:
        return Difference(difference, 0.0, difference, difference, 1.0 if difference == 0 else 0.0)
    margin = normal_quantile(level) * error
    p_value = float(2 * stats.norm.sf(abs(difference) / error))
    return Difference(difference, error, difference - margin, difference + margin, p_value)
