"""Several models' scores as one logit, weighed as held-out labels teach (Wolpert 1992)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from star_jax.evaluation.logistic import logistic_regression

_PENALTY = 1.0  # Half the square of the weight of each column, of variance 1, joins the loss.


class Ends(NamedTuple):
    """What is known of the two ends of pairs; shapes broadcast with those of scores."""

    warm_sender: Bool[np.ndarray, "..."]  # Whether it has links that may be seen.
    warm_receiver: Bool[np.ndarray, "..."]


class Stack(NamedTuple):
    """A logistic regression on scores, on whether the ends are warm, and on their products.

    A model that lives on links deserves less trust where an end has none, and links of a receiver
    say how old it is: neither is in the scores of models that were trained on one window of time.

    Attributes:
      bias: Of the logit.
      weights: Of the columns, in the order of `names`.
    """

    bias: float
    weights: Float[np.ndarray, " F"]

    def logits(
        self, scores: Sequence[Float[np.ndarray, "..."]], ends: Ends
    ) -> Float[np.ndarray, "..."]:
        """Logits of pairs, or of a grid, from the scores of the models that it was fitted to."""
        logits = np.full(np.shape(scores[0]), self.bias)
        for weight, column in zip(self.weights, _columns(scores, ends), strict=True):
            logits += weight * column
        return logits


def names(models: Sequence[str]) -> list[str]:
    """Of the columns that the scores of some models give."""
    of_scores = [
        f"{model}{times}"
        for model in models
        for times in ("", *(f" * {end}" for end in Ends._fields))
    ]
    return [*of_scores, *Ends._fields]


def fit_stack(
    scores: Sequence[Float[np.ndarray, " B"]], ends: Ends, labels: Bool[np.ndarray, " B"]
) -> Stack:
    """Fits the regression to pairs that no model was trained on.

    Args:
      scores: Of every model, of every pair.
      ends: Of the pairs.
      labels: Of the pairs, of both kinds.
    """
    columns = np.stack([*_columns(scores, ends)], axis=1).astype(np.float64)
    mean, spread = columns.mean(axis=0), columns.std(axis=0)
    spread[spread == 0] = 1.0  # The weight of a constant column stays zero.
    design = np.column_stack([np.ones(len(labels)), (columns - mean) / spread])
    bias, *weights = logistic_regression(design, labels, np.ones(len(labels)), _PENALTY)
    weights = np.asarray(weights) / spread
    return Stack(float(bias - weights @ mean), weights)


def _columns(
    scores: Sequence[Float[np.ndarray, "..."]], ends: Ends
) -> Iterator[Float[np.ndarray, "..."]]:
    """One after the other, so that those of a grid are never there together."""
    warm = [end.astype(np.float64) for end in ends]
    for each in scores:
        yield each
        for end in warm:
            yield each * end
    yield from warm
