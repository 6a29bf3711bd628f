"""Logistic regression, and the conditional logit, on a few columns: both by Newton's method."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

_STEPS = 50
_TOLERANCE = 1e-10
_MOST_CHANGED = 5.0  # Of a coefficient in a step.

_Slopes = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of coefficients, the gradient of what is maximised and its curvature, positive."""


def logistic_regression(
    design: Float[np.ndarray, "B F"],
    labels: Bool[np.ndarray, " B"],
    weights: Float[np.ndarray, " B"],
    penalty: float = 0.0,
) -> Float[np.ndarray, " F"]:
    """Coefficients that minimise the weighted log loss, summed over the examples.

    Args:
      design: Columns of about one size; the first one is of ones.
      labels: Of both kinds.
      weights: Of the examples.
      penalty: Times half the sum of squares of all coefficients but the first.
    """
    start = np.zeros(design.shape[1])
    start[0] = special.logit(np.average(labels, weights=weights))
    penalties = np.full(design.shape[1], penalty)
    penalties[0] = 0.0

    def slopes(fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probability = special.expit(design @ fitted)
        gradient = design.T @ (weights * (labels - probability)) - penalties * fitted
        curvature = design.T @ (design * (weights * probability * (1 - probability))[:, None])
        return gradient, curvature + np.diag(penalties)

    return _newton(start, slopes)


def conditional_logit(
    columns: Sequence[Float[np.ndarray, "#Q C"]],
    chosen: Sequence[Int[np.ndarray, " _"]],
    shown: Bool[np.ndarray, "Q C"],
    penalty: float = 1.0,
) -> Float[np.ndarray, " F"]:
    """Coefficients under which what was chosen of many is likeliest (McFadden 1974).

    A query chooses candidate c of those shown with probability proportional to exp(w . x_c); what
    is the same for all candidates of a query says nothing. Several choices of a query are taken one
    by one, each out of all that are shown.

    Args:
      columns: x, one column after the other; of one row where all queries share it.
      chosen: Candidates, per query, all of them shown.
      shown: Of whom each query chooses.
      penalty: Times half the sum of squares of the coefficients, beside a sum over all choices.
    """

    def slopes(fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gradient, curvature = -penalty * fitted, penalty * np.eye(len(fitted))
        for query, (taken, among) in enumerate(zip(chosen, shown, strict=True)):
            x = np.stack([column[query % len(column)] for column in columns], axis=1)
            offered = x[among]
            probability = special.softmax(offered @ fitted)
            mean = probability @ offered
            centred = offered - mean
            gradient += (x[taken] - mean).sum(axis=0)
            curvature += len(taken) * (centred * probability[:, None]).T @ centred
        return gradient, curvature

    return _newton(np.zeros(len(columns)), slopes)


def _newton(start: np.ndarray, slopes: _Slopes) -> np.ndarray:
    fitted = start
    for _ in range(_STEPS):
        gradient, curvature = slopes(fitted)
        change = np.clip(np.linalg.solve(curvature, gradient), -_MOST_CHANGED, _MOST_CHANGED)
        fitted = fitted + change
        if np.max(np.abs(change)) < _TOLERANCE:
            break
    return fitted
