"""What the reference methods learn from: who interacted with what."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse


class Interactions(NamedTuple):
    """Visible interactions; a pair may occur more than once."""

    sender: Int[np.ndarray, " M"]
    receiver: Int[np.ndarray, " M"]
    num_senders: int
    num_receivers: int

    def matrix(self) -> sparse.csr_array:
        """1 where a sender interacted with a receiver: [senders, receivers]."""
        ones = np.ones(len(self.sender), np.float64)
        shape = (self.num_senders, self.num_receivers)
        counts = sparse.csr_array((ones, (self.sender, self.receiver)), shape=shape)
        counts.data[:] = 1.0
        return counts


def row_products(left: sparse.csr_array, right: sparse.csr_array) -> Float[np.ndarray, " B"]:
    """Dot product of each row of one matrix with the same row of the other."""
    return np.asarray(left.multiply(right).sum(axis=1), np.float64).reshape(-1)
