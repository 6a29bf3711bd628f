"""Who is known to belong to whom: such pairs are negatives nowhere."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Int64

from star_jax.pipeline.tables.read import PairTable, TablesMeta, TaskMeta, read_links


def known_positives(
    tables: Path, meta: TablesMeta, task: TaskMeta, pairs: PairTable
) -> Int64[np.ndarray, "A 2"]:
    """(sender, receiver) of all positives up to the end of the train split, each once.

    Args:
      tables: Where the edges are: a positive outside of the pairs is one there.
      meta: Of the tables.
      task: Whose positives.
      pairs: Of its train split.
    """
    positive, links = pairs.label == 1, read_links(tables, meta, task, before="val")
    columns = zip((pairs.sender[positive], pairs.receiver[positive]), links[:2], strict=True)
    ends = np.stack([np.concatenate(both) for both in columns], axis=1).astype(np.int64)
    ends = ends[np.lexsort((ends[:, 1], ends[:, 0]))]
    return ends[np.any(np.diff(ends, axis=0, prepend=-1) != 0, axis=1)]


class KnownPairs:
    """Who is known to have applied where, looked up for the pairs of a batch."""

    def __init__(self, known: Int64[np.ndarray, "A 2"]) -> None:
        """Takes (sender, receiver) of the positives, as `known_positives` returns them."""
        order = np.lexsort((known[:, 0], known[:, 1]))
        self._sender, self._receiver = known[order].T

    def between(
        self, sender: Int[np.ndarray, " B"], receiver: Int[np.ndarray, " B"]
    ) -> Bool[np.ndarray, "B B"]:
        """[i, j]: the sender of row j is known to have applied to the receiver of row i."""
        senders, of_sender = np.unique(sender, return_inverse=True)
        receivers, of_receiver = np.unique(receiver, return_inverse=True)
        first = np.searchsorted(self._receiver, receivers, side="left")
        count = np.searchsorted(self._receiver, receivers, side="right") - first
        before = np.cumsum(count) - count
        applied = self._sender[np.repeat(first - before, count) + np.arange(count.sum())]
        column = np.minimum(np.searchsorted(senders, applied), len(senders) - 1)
        here = senders[column] == applied
        known = np.zeros((len(receivers), len(senders)), bool)
        known[np.repeat(np.arange(len(receivers)), count)[here], column[here]] = True
        return known[of_receiver[:, None], of_sender[None, :]]
