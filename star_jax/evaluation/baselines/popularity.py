"""The shortest recommender: what many have chosen before."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from star_jax.evaluation.baselines.interactions import Interactions


class Popularity(NamedTuple):
    """Number of visible interactions per receiver."""

    counts: Float[np.ndarray, " N"]

    def score(
        self, sender: Int[np.ndarray, " B"], receiver: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, " B"]:
        """One score per pair; the sender does not matter."""
        del sender
        return self.counts[receiver]

    def grid(
        self, sender: Int[np.ndarray, " Q"], receiver: Int[np.ndarray, " C"]
    ) -> Float[np.ndarray, "Q C"]:
        """Every sender against every receiver."""
        return np.tile(self.counts[receiver], (len(sender), 1))


def fit(interactions: Interactions) -> Popularity:
    """Counts."""
    counts = np.bincount(interactions.receiver, minlength=interactions.num_receivers)
    return Popularity(counts.astype(np.float64))
