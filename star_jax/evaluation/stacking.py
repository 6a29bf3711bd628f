"""Several models' scores as one logit, weighed as held-out labels teach (Wolpert 1992)."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from star_jax.evaluation.logistic import logistic_regression

_PENALTY = 1.0  # Half the square of the weight of each column, of variance 1, joins the loss.

Scores = Mapping[str, Float[np.ndarray, "..."]]
"""By model, of pairs or of a grid."""


class Ends(NamedTuple):
    """What is known of the two ends of pairs; shapes broadcast with those of scores."""

    warm_sender: Bool[np.ndarray, "..."]  # Whether it has links that may be seen.
    warm_receiver: Bool[np.ndarray, "..."]


class Stack(NamedTuple):
    """A logistic regression on scores, on whether the ends are warm, and on their products.

    A model that lives on links deserves less trust where an end has none, and links of a receiver
    say how old it is: neither is in the scores of models that were trained on one window of time.

    Attributes:
      models: Whose scores it takes.
      bias: Of the logit.
      weights: By column, as "text" or "text * warm_sender".
    """

    models: tuple[str, ...]
    bias: float
    weights: dict[str, float]

    def logits(self, scores: Scores, ends: Ends) -> Float[np.ndarray, "..."]:
        """Logits of pairs, or of a grid, from the scores of its models, others left aside."""
        logits = np.full(np.shape(scores[self.models[0]]), self.bias)
        for name, column in _columns({model: scores[model] for model in self.models}, ends):
            logits += self.weights[name] * column
        return logits


def fit_stack(scores: Scores, ends: Ends, labels: Bool[np.ndarray, " B"]) -> Stack:
    """Fits the regression to pairs that no model was trained on.

    Args:
      scores: Of every pair.
      ends: Of the pairs.
      labels: Of the pairs, of both kinds.
    """
    names, columns = zip(*_columns(scores, ends), strict=True)
    design = np.stack(columns, axis=1).astype(np.float64)
    mean, spread = design.mean(axis=0), design.std(axis=0)
    spread[spread == 0] = 1.0  # The weight of a constant column stays zero.
    design = np.column_stack([np.ones(len(labels)), (design - mean) / spread])
    bias, *scaled = logistic_regression(design, labels, np.ones(len(labels)), _PENALTY)
    weights = np.asarray(scaled) / spread
    return Stack(
        tuple(scores), float(bias - weights @ mean), dict(zip(names, weights.tolist(), strict=True))
    )


def _columns(scores: Scores, ends: Ends) -> Iterator[tuple[str, Float[np.ndarray, "..."]]]:
    """One after the other, so that those of a grid are never there together."""
    warm = {name: end.astype(np.float64) for name, end in ends._asdict().items()}
    for model, each in scores.items():
        yield model, each
        for name, end in warm.items():
            yield f"{model} * {name}", each * end
    yield from warm.items()
