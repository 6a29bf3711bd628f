"""Negatives drawn anew for every batch, in place of those that the tables hold."""

import numpy as np
from jaxtyping import Int32, Int64

from star_jax.graph.model import LinkTask
from star_jax.graph.samplers.kernels import texts_as_of
from star_jax.graph.store import GraphStore
from star_jax.pipeline.graph_loader import Groups, Pairs
from star_jax.shapes import NO_TIME

_DRAWS = 16  # Tries per negative before its place stays empty.


class UniformNegatives:
    """Draws fresh negatives: receivers of training positives that existed before the event."""

    def __init__(
        self, groups: Groups, store: GraphStore, task: LinkTask, per_positive: int
    ) -> None:
        """Prepares the pool.

        Args:
          groups: Of the training split.
          store: Says when receivers were created and what their texts were.
          task: Gives the receiver's type.
          per_positive: How many to draw.
        """
        positives = groups.positives()
        pool = np.unique(positives.receiver)
        created = np.asarray(store.node_time[task.receiver])[pool]
        order = np.argsort(created, kind="stable")
        self._pool, self._created = pool[order].astype(np.int32), created[order]
        self._known = np.unique(_pair_key(positives.sender, positives.receiver))
        self._per_positive = per_positive
        self._store, self._receiver = store, task.receiver

    def __call__(self, pairs: Pairs, seed: int) -> Pairs:
        """Appends negatives to groups of positives; fewer where no receiver could be drawn.

        Args:
          pairs: Positives alone.
          seed: Of this batch.
        """
        rng = np.random.default_rng(seed)
        source = np.repeat(np.arange(len(pairs.group)), self._per_positive)
        sender, time = pairs.sender[source], pairs.time[pairs.group[source]]
        existing = np.where(
            time == NO_TIME, len(self._pool), np.searchsorted(self._created, time, side="left")
        )
        receiver = np.full(len(source), -1, np.int32)
        for _ in range(_DRAWS):
            todo = np.flatnonzero((receiver < 0) & (existing > 0))
            drawn = self._pool[(rng.random(len(todo)) * existing[todo]).astype(np.int64)]
            fresh = ~np.isin(_pair_key(sender[todo], drawn), self._known)
            receiver[todo[fresh]] = drawn[fresh]
        kept = receiver >= 0
        source, receiver = source[kept], receiver[kept]
        negatives = Pairs(
            sender=pairs.sender[source],
            receiver=receiver,
            label=np.zeros(len(source), np.float32),
            group=pairs.group[source],
            time=pairs.time,
            sender_text=pairs.sender_text[source],
            receiver_text=self._texts(receiver, pairs.time[pairs.group[source]]),
        )
        order = np.argsort(np.concatenate([pairs.group, negatives.group]), kind="stable")
        joined = {
            name: np.concatenate([getattr(pairs, name), getattr(negatives, name)])[order]
            for name in Pairs._fields
            if name != "time"
        }
        return Pairs(**joined, time=pairs.time)

    def _texts(
        self, nodes: Int32[np.ndarray, " B"], times: Int64[np.ndarray, " B"]
    ) -> Int32[np.ndarray, " B"]:
        if self._receiver not in self._store.text_versions:
            return np.full(len(nodes), -1, np.int32)
        versions = self._store.text_versions[self._receiver]
        return texts_as_of(versions.bounds, versions.time, versions.text, nodes, times)


def _pair_key(sender: np.ndarray, receiver: np.ndarray) -> Int64[np.ndarray, "..."]:
    return sender.astype(np.int64) << 32 | receiver.astype(np.int64)
