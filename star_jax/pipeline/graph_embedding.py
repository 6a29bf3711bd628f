"""Seeds to vectors outside training: sampled in batches, embedded by one compiled program each.

Under the split rule no time hides an edge, so that a node looks the same to everyone who asks: it
is embedded once. Its texts are those it had at its last visible event, because a later text may
tell of events that the split hides.
"""

import copy
import math
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Float32, Int, Int32, Int64

from star_jax.graph.batches import Subgraph
from star_jax.graph.decoders import SeedVectors
from star_jax.graph.model import GraphModel, LinkTask, Role
from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.uniform import NO_EXCLUSION, sample
from star_jax.graph.store import SPLIT_BITS, TIMED_BIT, GraphStore, TextVersions
from star_jax.pipeline.graph_loader import Sampling
from star_jax.pipeline.tables.read import SPLIT_CODES
from star_jax.shapes import NO_TIME, PyTree

_BATCH_SEEDS = 1024
_BLOCK_PAIRS = 1 << 14


Sampled: TypeAlias = list[tuple[int, Subgraph]]
"""Batches of seeds: how many are real, and their padded subgraph."""


class Seeds(NamedTuple):
    """Whose vectors are wanted."""

    node: Int32[np.ndarray, " S"]
    text: Int32[np.ndarray, " S"] | None  # Text each one shows; -1: none. None: as of its time.
    time: Int64[np.ndarray, " S"]


def splits_until(split: str) -> int:
    """Bits of `split` and of those before it: always visible, train, val, test."""
    return sum(1 << code for code in SPLIT_CODES.values() if code <= SPLIT_CODES[split])


def splits_before(split: str) -> int:
    """What scoring `split` may see: val sees train, test sees train and val."""
    return splits_until(split) & ~(1 << SPLIT_CODES[split])


def visible_until(store: GraphStore, visible_splits: int) -> int:
    """Just after the last visible edge; NO_TIME if no edge has a time."""
    latest = [NO_TIME]
    for adjacency in store.adjacency.values():
        seen = adjacency.time[_timed(adjacency.flags, visible_splits)]
        latest += [int(seen.max()) + 1] if len(seen) else []
    return max(latest)


def view_of_splits(store: GraphStore, visible_splits: int) -> GraphStore:
    """The store with no text later than its node's last visible event.

    A node without one keeps its first text.
    """
    view = copy.copy(store)
    view.text_versions = {
        name: _until(versions, _last_event(store, name, visible_splits))
        for name, versions in store.text_versions.items()
    }
    return view


class Embedder:
    """The encoders, compiled per role and type for the sizes that the seeds need."""

    def __init__(self, model: GraphModel, store: GraphStore, sampling: Sampling) -> None:
        self._store, self._sampling = store, sampling
        self._embed = jax.jit(
            lambda variables, subgraph, role, node_type: model.apply(
                variables, subgraph, role, node_type, False, method="embed"
            ),
            static_argnames=("role", "node_type"),
        )

    def prepare(
        self, node_type: str, seeds: Seeds, visible_splits: int, *, use_time: bool
    ) -> Sampled:
        """Samples all seeds in batches of one static size that holds every one of them.

        Args:
          node_type: Of the seeds.
          seeds: Each sees on its own: it is a group of one, or shares one where times are equal.
          visible_splits: As in `sample`.
          use_time: As in `sample`.
        """
        parts = list(_parts(len(seeds.node), _BATCH_SEEDS))
        size = min(_BATCH_SEEDS, 8 * math.ceil(max(len(seeds.node), 1) / 8))
        batches = [_seed_batch(seeds, part) for part in parts]
        budget = calibrate(
            self._store,
            lambda number: batches[number],
            self._sampling.fanouts,
            seed_type=node_type,
            num_seeds=size,
            visible_splits=visible_splits,
            replace=self._sampling.replace,
            use_time=use_time,
            num_batches=len(batches),
        )
        made = []
        for number, batch in enumerate(batches):
            subgraph, stats = sample(
                self._store,
                seed_type=node_type,
                visible_splits=visible_splits,
                fanouts=self._sampling.fanouts,
                budget=budget,
                key=number,  # As the calibration drew: the budget holds.
                replace=self._sampling.replace,
                use_time=use_time,
                **batch._asdict(),
            )
            assert stats.num_dropped == 0
            made.append((len(batch.seeds), subgraph))
        return made

    def __call__(
        self, variables: PyTree, role: Role, node_type: str, prepared: Sampled
    ) -> SeedVectors:
        """Vectors of prepared seeds, in their order."""
        made = []
        for size, subgraph in prepared:
            vectors = self._embed(variables, subgraph, role, node_type)
            made.append(SeedVectors(*(np.asarray(part)[:size] for part in vectors)))
        return SeedVectors(*(np.concatenate(parts) for parts in zip(*made, strict=True)))


class PairDecoder:
    """One task's decoder, compiled for blocks of pairs."""

    def __init__(self, model: GraphModel, task: LinkTask) -> None:
        self._decode = jax.jit(
            lambda variables, senders, receivers: model.apply(
                variables, task.name, senders, receivers, False, method="decode"
            )
        )

    def __call__(
        self,
        variables: PyTree,
        senders: SeedVectors,
        receivers: SeedVectors,
        sender_row: Int[np.ndarray, " B"],
        receiver_row: Int[np.ndarray, " B"],
    ) -> Float32[np.ndarray, " B"]:
        """Logit of every pair of rows."""
        num_pairs = len(sender_row)
        block = min(_BLOCK_PAIRS, 8 * math.ceil(max(num_pairs, 1) / 8))
        logits = np.empty(num_pairs, np.float32)
        for part in _parts(num_pairs, block):
            rows = [
                np.pad(row[part], (0, block - len(row[part]))) for row in (sender_row, receiver_row)
            ]
            found = self._decode(variables, senders.take(rows[0]), receivers.take(rows[1]))
            logits[part] = np.asarray(found)[: len(logits[part])]
        return logits

    def grid(
        self, variables: PyTree, senders: SeedVectors, receivers: SeedVectors
    ) -> Float32[np.ndarray, "Q C"]:
        """Logit of every sender with every receiver."""
        num_senders, num_receivers = len(senders.embedding), len(receivers.embedding)
        rows = np.arange(num_senders * num_receivers)
        logits = self(variables, senders, receivers, rows // num_receivers, rows % num_receivers)
        return logits.reshape(num_senders, num_receivers)


def distinct(seeds: Seeds) -> tuple[Seeds, Int[np.ndarray, " S"]]:
    """Every different seed once, and the row of each among them."""
    assert seeds.text is not None
    columns = np.stack([seeds.node, seeds.text, seeds.time], axis=1)
    unique, row = np.unique(columns, axis=0, return_inverse=True)
    node, text, time = unique.T
    return Seeds(node.astype(np.int32), text.astype(np.int32), time), row.reshape(-1)


def _seed_batch(seeds: Seeds, part: slice) -> SeedBatch:
    times, groups = np.unique(seeds.time[part], return_inverse=True)
    return SeedBatch(
        seeds=seeds.node[part],
        groups=groups.reshape(-1).astype(np.int32),
        group_time=times,
        exclude=NO_EXCLUSION,
        seed_text_row=None if seeds.text is None else seeds.text[part],
    )


def _parts(total: int, size: int) -> Iterator[slice]:
    for start in range(0, max(total, 1), size):
        yield slice(start, min(start + size, total))


def _timed(flags: np.ndarray, visible_splits: int) -> np.ndarray:
    split = flags & SPLIT_BITS
    return ((flags & TIMED_BIT) != 0) & ((visible_splits >> split) & 1 == 1)


def _last_event(store: GraphStore, node_type: str, visible_splits: int) -> Int64[np.ndarray, " N"]:
    """Time of each node's last edge of a visible split; NO_TIME without any."""
    adjacency = store.adjacency[node_type]
    bounds = np.asarray(adjacency.bounds)
    node = np.repeat(np.arange(len(bounds)), bounds[:, -1] - bounds[:, 0])
    of_split = visible_splits & ~(1 << SPLIT_CODES["always"])
    seen = _timed(adjacency.flags, of_split)
    last = np.full(len(bounds), NO_TIME, np.int64)
    np.maximum.at(last, node[seen], adjacency.time[seen])
    return last


def _until(versions: TextVersions, last: Int64[np.ndarray, " N"]) -> TextVersions:
    bounds = np.asarray(versions.bounds, np.int64)
    sizes = np.diff(bounds)
    node = np.repeat(np.arange(len(sizes)), sizes)
    first = np.arange(len(node)) == bounds[:-1][node]
    keep = first | (versions.time <= last[node])
    kept = np.bincount(node[keep], minlength=len(sizes))
    return TextVersions(
        np.concatenate([[0], np.cumsum(kept)]).astype(versions.bounds.dtype),
        versions.time[keep],
        versions.text[keep],
    )
