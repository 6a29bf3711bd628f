"""Which of many candidates is chosen: the conditional logit (McFadden 1974), by Newton's method."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

_PENALTY = 1.0  # Half the sum of squared weights, beside a sum over all choices.
_STEPS = 50
_TOLERANCE = 1e-8
_MOST_CHANGED = 2.0  # Of a weight in a step.


def conditional_logit(
    columns: Sequence[Float[np.ndarray, "#Q C"]],
    chosen: Sequence[Int[np.ndarray, " _"]],
    shown: Bool[np.ndarray, "Q C"],
) -> Float[np.ndarray, " F"]:
    """Weights w under which what was chosen is likeliest.

    A query chooses candidate c of those shown with probability proportional to exp(w . x_c); what
    is the same for all candidates of a query says nothing. Several choices of a query are taken one
    by one, each out of all that are shown.

    Args:
      columns: x, one column after the other; of one row where all queries share it.
      chosen: Candidates, per query, all of them shown.
      shown: Of whom each query chooses.
    """
    weights = np.zeros(len(columns))
    for _ in range(_STEPS):
        gradient, curvature = -_PENALTY * weights, _PENALTY * np.eye(len(weights))
        for query, (taken, among) in enumerate(zip(chosen, shown, strict=True)):
            x = np.stack([column[query % len(column)] for column in columns], axis=1)
            offered = x[among]
            probability = special.softmax(offered @ weights)
            mean = probability @ offered
            centred = offered - mean
            gradient += (x[taken] - mean).sum(axis=0)
            curvature += len(taken) * (centred * probability[:, None]).T @ centred
        change = np.clip(np.linalg.solve(curvature, gradient), -_MOST_CHANGED, _MOST_CHANGED)
        weights = weights + change
        if np.abs(change).max() < _TOLERANCE:
            break
    return weights
