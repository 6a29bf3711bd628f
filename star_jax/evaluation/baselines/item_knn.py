"""Item-based collaborative filtering: receivers chosen by the same senders are alike."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from star_jax.evaluation.baselines.interactions import Interactions, row_products


class ItemKnn(NamedTuple):
    """Histories, and the cosine between the sets of senders of any two receivers."""

    history: sparse.csr_array
    similarity: sparse.csr_array

    def score(
        self, sender: Int[np.ndarray, " B"], receiver: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, " B"]:
        """Sum of the similarities between the receiver and what the sender chose before."""
        return row_products(self.history[sender], self.similarity[receiver])

    def grid(
        self, sender: Int[np.ndarray, " Q"], receiver: Int[np.ndarray, " C"]
    ) -> Float[np.ndarray, "Q C"]:
        """Every sender against every receiver."""
        return (self.history[sender] @ self.similarity[receiver].T).toarray()


def fit(interactions: Interactions) -> ItemKnn:
    """All neighbours count; a receiver is no neighbour of itself."""
    history = interactions.matrix()
    norm = np.sqrt(np.asarray(history.sum(axis=0), np.float64).reshape(-1))
    scaled = sparse.csr_array(history * (1 / np.maximum(norm, 1.0))[None, :])
    similarity = sparse.csr_array(scaled.T @ scaled)
    similarity.setdiag(0.0)
    similarity.eliminate_zeros()
    return ItemKnn(history, similarity)
