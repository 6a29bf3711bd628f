"""Which senders and receivers are known to belong together."""

import numpy as np
from jaxtyping import Bool, Int, Int64

from star_jax.pipeline.tables.read import PairTable


class KnownLinks:
    """The positive pairs of the training split."""

    def __init__(self, positives: PairTable) -> None:
        self._keys = np.unique(pair_key(positives.sender, positives.receiver))

    def __call__(
        self, sender: Int[np.ndarray, "..."], receiver: Int[np.ndarray, "..."]
    ) -> Bool[np.ndarray, "..."]:
        """Whether each sender is linked with its receiver; the two broadcast."""
        keys = pair_key(sender, receiver)
        if not len(self._keys):
            return np.zeros(keys.shape, bool)
        # Keys of all nodes are too far apart for the table of np.isin, which would sort them anew.
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._keys[at] == keys


def pair_key(
    sender: Int[np.ndarray, "..."], receiver: Int[np.ndarray, "..."]
) -> Int64[np.ndarray, "..."]:
    """One number for both ends."""
    return sender.astype(np.int64) << 32 | receiver.astype(np.int64)
