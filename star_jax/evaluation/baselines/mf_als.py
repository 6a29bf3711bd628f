"""Matrix factorisation of implicit feedback by alternating least squares (Hu et al. 2008)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from star_jax.evaluation.baselines.interactions import Interactions

NUM_FACTORS = 64
NUM_ROUNDS = 15
CONFIDENCE = 40.0  # Of an interaction, over that of an absent one: the paper's alpha.
REGULARISATION = 10.0
_INITIAL_SCALE = 0.01
_BLOCK_VECTORS = 1 << 16  # Gathered at a time.


class MatrixFactors(NamedTuple):
    """A vector per sender and per receiver; zeros for those without interactions."""

    senders: Float[np.ndarray, "N K"]
    receivers: Float[np.ndarray, "M K"]

    def score(
        self, sender: Int[np.ndarray, " B"], receiver: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, " B"]:
        """Dot product of the two vectors."""
        return np.einsum("bk,bk->b", self.senders[sender], self.receivers[receiver])

    def grid(
        self, sender: Int[np.ndarray, " Q"], receiver: Int[np.ndarray, " C"]
    ) -> Float[np.ndarray, "Q C"]:
        """Every sender against every receiver."""
        return self.senders[sender] @ self.receivers[receiver].T


def fit(interactions: Interactions, seed: int) -> MatrixFactors:
    """Runs a fixed number of rounds with fixed settings: a reference is not tuned."""
    by_sender = interactions.matrix()
    by_receiver = sparse.csr_array(by_sender.T.tocsr())
    rng = np.random.default_rng(seed)
    senders = np.zeros((interactions.num_senders, NUM_FACTORS))
    receivers = _INITIAL_SCALE * rng.standard_normal((interactions.num_receivers, NUM_FACTORS))
    receivers[np.diff(by_receiver.indptr) == 0] = 0.0
    for _ in range(NUM_ROUNDS):
        senders = _solve(by_sender, receivers)
        receivers = _solve(by_receiver, senders)
    return MatrixFactors(senders, receivers)


def _solve(chosen: sparse.csr_array, other: Float[np.ndarray, "M K"]) -> Float[np.ndarray, "N K"]:
    """Best vectors of one side given the other: Hu et al. (2008), eq. 4.

    Rows of equal length are solved together; short ones in the space of their own few vectors,
    (A + c V'V)^-1 V' = A^-1 V' (I + c V A^-1 V')^-1, long ones in the space of the factors.
    """
    num_factors = other.shape[1]
    lengths = np.diff(chosen.indptr)
    solved = np.zeros((len(lengths), num_factors))
    shared = other.T @ other + REGULARISATION * np.eye(num_factors)
    inverse = np.linalg.inv(shared)
    for length in np.unique(lengths[lengths > 0]):
        rows = np.flatnonzero(lengths == length)
        for block in np.array_split(rows, len(rows) * length // _BLOCK_VECTORS + 1):
            vectors = other[chosen.indices[chosen.indptr[block][:, None] + np.arange(length)]]
            across = vectors.transpose(0, 2, 1)
            if length < num_factors:
                projected = vectors @ inverse
                small = np.eye(length) + CONFIDENCE * projected @ across
                weight = np.linalg.solve(small, np.ones((len(block), length, 1)))
                best = (projected * weight).sum(axis=1)
            else:
                large = shared + CONFIDENCE * across @ vectors
                best = np.linalg.solve(large, vectors.sum(axis=1)[:, :, None])[:, :, 0]
            solved[block] = (1 + CONFIDENCE) * best
    return solved
