"""Logistic regression on a few columns, by Newton's method."""

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

_STEPS = 50
_TOLERANCE = 1e-10
_MOST_CHANGED = 5.0  # Of a weight in a step.


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
    rate = float(np.average(labels, weights=weights))
    fitted = np.zeros(design.shape[1])
    fitted[0] = special.logit(rate)
    penalties = np.full(design.shape[1], penalty)
    penalties[0] = 0.0
    for _ in range(_STEPS):
        probability = special.expit(design @ fitted)
        gradient = design.T @ (weights * (labels - probability)) - penalties * fitted
        hessian = design.T @ (design * (weights * probability * (1 - probability))[:, None])
        change = np.linalg.solve(hessian + np.diag(penalties), gradient)
        change = np.clip(change, -_MOST_CHANGED, _MOST_CHANGED)
        fitted = fitted + change
        if np.max(np.abs(change)) < _TOLERANCE:
            break
    return fitted
