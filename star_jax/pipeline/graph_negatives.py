"""Negatives drawn anew for every batch, in place of those that the tables hold."""

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt64

from star_jax.graph.model import LinkTask
from star_jax.graph.samplers.draws import GOLDEN, mix_all
from star_jax.graph.samplers.search import texts_as_of
from star_jax.graph.store import GraphStore
from star_jax.pipeline.graph_links import KnownLinks, pair_key
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
        self._known = KnownLinks(positives)
        self._per_positive = per_positive
        self._store, self._receiver = store, task.receiver

    def __call__(self, pairs: Pairs, seed: int) -> Pairs:
        """Appends negatives to the groups; fewer where no receiver could be drawn.

        Draws are a function of (seed, positive, slot), whatever else is in the batch.

        Args:
          pairs: Positives, and what else is to stay in their groups.
          seed: Of this step; 64 bits.
        """
        positive = np.flatnonzero(pairs.label == 1)
        source = np.repeat(positive, self._per_positive)
        sender, time = pairs.sender[source], pairs.time[pairs.group[source]]
        existing = np.where(
            time == NO_TIME, len(self._pool), np.searchsorted(self._created, time, side="left")
        )
        receiver = np.full(len(source), -1, np.int32)
        start = _streams(pairs, seed)[source]
        slot = np.tile(np.arange(self._per_positive), len(positive)) * _DRAWS
        for attempt in range(_DRAWS):
            todo = np.flatnonzero((receiver < 0) & (existing > 0))
            if not len(todo):
                break
            part = _fractions(start[todo], slot[todo] + attempt)
            drawn = self._pool[(part * existing[todo]).astype(np.int64)]
            fresh = ~self._known(sender[todo], drawn)
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


def _streams(pairs: Pairs, seed: int) -> UInt64[np.ndarray, " B"]:
    """Start of the draws of every positive."""
    pair = pair_key(pairs.sender, pairs.receiver).view(np.uint64)
    time = pairs.time[pairs.group].view(np.uint64)
    return mix_all(mix_all(np.uint64(seed) ^ mix_all(pair)) + time)


def _fractions(
    start: UInt64[np.ndarray, " n"], slot: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Uniform in [0, 1), 53 bits."""
    word = mix_all(start + (slot.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return (word >> np.uint64(11)) * 2.0**-53
