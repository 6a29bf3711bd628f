"""One-hop samples of fixed shapes: nodes that need about as many neighbours go together.

A bucket has so many slots per relation; a node goes where it finds all it needs with the fewest
slots. A hub without equals has a bucket to itself, so that its neighbours alone bound what a batch
holds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from star_jax.graph.batches import Budget
from star_jax.graph.samplers.channels import is_channel
from star_jax.graph.samplers.degrees import visible_degrees
from star_jax.graph.samplers.layout import Layout, layout_of
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.schema import parse_key
from star_jax.graph.store import GraphStore

_CHUNK_NODES = 1 << 16
_MULTIPLE = 8
_MOST_SAMPLED = 1 << 15  # Nodes that buckets are chosen by, when all were counted.
_SHARES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)  # Of alike nodes that a bucket holds.

Fanout = tuple[tuple[str, int], ...]
"""Edge key -> neighbours to draw, as a `State` has it."""


class Shapes(NamedTuple):
    """What decides how many nodes a batch has, and how many buckets there are.

    Attributes:
      most_rows: Nodes of a batch.
      most_slots: Neighbours of a batch, unless one node alone has more.
      program_slots: As many padded slots cost what compiling another program does.
    """

    most_rows: int = 4096
    most_slots: int = 1 << 16
    program_slots: int = 1 << 18


class Bucket(NamedTuple):
    """The shape of one batch.

    Attributes:
      fanout: Neighbours to draw. Nodes that would draw more elsewhere have no more than these.
      layout: Of the sample.
      num_rows: Nodes.
    """

    fanout: dict[str, int]
    layout: Layout
    num_rows: int

    @property
    def num_slots(self) -> int:
        """Neighbours of all nodes of a batch."""
        return self.num_rows * sum(self.fanout.values())


def needs(
    store: GraphStore,
    node_type: str,
    fanout: Fanout,
    sampler: SamplerConfig,
    visible_splits: int,
    nodes: Int[np.ndarray, " S"],
) -> Int64[np.ndarray, "S r"]:
    """Per node and relation, how many slots hold all neighbours that may be drawn.

    Args:
      store: The graph.
      node_type: Of the nodes.
      fanout: Neighbours to draw.
      sampler: How they are chosen.
      visible_splits: As in `sample`; times, which may hide more, are not looked at.
      nodes: Of the type.
    """
    column = {edge.key: j for j, edge in enumerate(store.relations[node_type])}
    keys = [key for key, _ in fanout]
    drawn = np.asarray([count for _, count in fanout], np.int64)
    found = np.broadcast_to(drawn, (len(nodes), len(keys))).copy()
    edges = [j for j, key in enumerate(keys) if not is_channel(key)]
    adjacency = store.adjacency[node_type]
    degrees = visible_degrees(
        adjacency.bounds,
        adjacency.flags,
        np.asarray([column[keys[j]] for j in edges], np.int64),
        visible_splits,
        nodes,
    )
    if sampler.replace:
        degrees = np.where(degrees > 0, drawn[edges][None], 0)
    found[:, edges] = np.minimum(found[:, edges], degrees)
    return found


def make_buckets(
    store: GraphStore,
    node_type: str,
    fanout: Fanout,
    sampler: SamplerConfig,
    visible_splits: int,
    shapes: Shapes,
) -> list[Bucket]:
    """Shapes for all nodes of a type, those of few slots first; a function of the arguments alone.

    Args:
      store: The graph.
      node_type: Of the nodes.
      fanout: Neighbours to draw.
      sampler: How they are chosen.
      visible_splits: As in `sample`.
      shapes: Of the batches.
    """

    def chunks() -> Iterator[Int64[np.ndarray, "S r"]]:
        total = store.num_nodes[node_type]
        for start in range(0, total, _CHUNK_NODES):
            nodes = np.arange(start, min(start + _CHUNK_NODES, total), dtype=np.int32)
            yield needs(store, node_type, fanout, sampler, visible_splits, nodes)

    widths = _widths(chunks, len(fanout), store.num_nodes[node_type], shapes.program_slots)
    return [_bucket(store, node_type, fanout, width, shapes) for width in widths.tolist()]


def places(
    needed: Int64[np.ndarray, "S r"], fanout: Fanout, buckets: Sequence[Bucket]
) -> Int64[np.ndarray, " S"]:
    """The first bucket that has room for all that a node needs."""
    widths = np.asarray([[b.fanout.get(key, 0) for key, _ in fanout] for b in buckets], np.int64)
    place = np.zeros(len(needed), np.int64)
    for i in reversed(range(len(buckets))):
        place[(needed <= widths[i][None]).all(axis=1)] = i
    return place


def _widths(
    chunks: Callable[[], Iterator[Int64[np.ndarray, "S r"]]],
    num_relations: int,
    num_nodes: int,
    program_slots: int,
) -> Int64[np.ndarray, "buckets r"]:
    """Slots per relation of every bucket, in order of their sum.

    First nodes are parted by the digits of what they need in all, of which all nodes are counted;
    so no node shares a bucket with a hub that does not have to. Then a sample of the nodes, every
    so many of them, shows which relations can do with less.
    """
    counts, highest = np.zeros(64, np.int64), np.zeros((64, num_relations), np.int64)
    stride = -(-max(num_nodes, 1) // _MOST_SAMPLED)
    sampled, start = [np.zeros((0, num_relations), np.int64)], 0
    for chunk in chunks():
        digits = _digits(chunk)
        counts += np.bincount(digits, minlength=64)
        np.maximum.at(highest, digits, chunk)
        sampled.append(chunk[-start % stride :: stride])
        start += len(chunk)
    highest = np.maximum.accumulate(highest, axis=0)
    first = highest[_cut(counts, highest.sum(axis=1), program_slots)]
    return _refined(first, np.concatenate(sampled), stride, program_slots)


def _cut(
    counts: Int64[np.ndarray, " D"], slots: Int64[np.ndarray, " D"], program_slots: int
) -> list[int]:
    """The last classes of the buckets that together cost least, programs counted as slots.

    Args:
      counts: Nodes of each class.
      slots: Of a node in a bucket that holds this class and those before it.
      program_slots: As in `Shapes`.
    """
    before = np.concatenate([[0], np.cumsum(counts)])
    cost, last = [0], []
    for j, size in enumerate(slots.tolist()):
        costs = np.asarray(cost) + (before[j + 1] - before[: j + 1]) * size + program_slots
        last.append(int(np.argmin(costs)))
        cost.append(int(costs[last[-1]]))
    ends, j = [], len(counts)
    while j:
        ends.append(j - 1)
        j = last[j - 1]
    return ends[::-1]


def _refined(
    first: Int64[np.ndarray, "some r"],
    needed: Int64[np.ndarray, "S r"],
    weight: int,
    program_slots: int,
) -> Int64[np.ndarray, "buckets r"]:
    """Adds the bucket that saves most slots, as long as it saves those that a program costs.

    Args:
      first: Widths of buckets that hold all nodes.
      needed: Of a sample of them.
      weight: Nodes that one of the sample stands for.
      program_slots: As in `Shapes`.
    """
    tried, chosen = _tried(needed), list(first)
    now = np.full(len(needed), first.sum(axis=1).max(initial=0))  # Slots of each node.
    for width in first:
        fits = (needed <= width[None]).all(axis=1)
        now = np.where(fits, np.minimum(now, width.sum()), now)
    saved = np.zeros((len(tried), len(needed)), np.float32)
    for i, width in enumerate(tried):
        fits = (needed <= width[None]).all(axis=1)
        saved[i] = weight * fits * np.maximum(now - width.sum(), 0)
    while len(tried):
        gains = saved.sum(axis=1)
        best = int(np.argmax(gains))
        if gains[best] <= program_slots:
            break
        chosen.append(tried[best])
        saved = np.maximum(saved - saved[best][None], 0)
    widths = np.stack(chosen)
    return widths[np.argsort(widths.sum(axis=1), kind="stable")]


def _tried(needed: Int64[np.ndarray, "S r"]) -> Int64[np.ndarray, "tried r"]:
    """Widths that hold, relation by relation, some share of nodes that need about as much."""
    digits = _digits(needed)
    found = [np.zeros((0, needed.shape[1]), np.int64)]
    for size in np.unique(digits):
        ordered = np.sort(needed[digits == size], axis=0)
        last = [math.ceil(share * len(ordered)) - 1 for share in _SHARES]
        found.append(ordered[last])
    return np.unique(np.concatenate(found), axis=0)


def _digits(needed: Int64[np.ndarray, "S r"]) -> Int64[np.ndarray, " S"]:
    """Binary digits of what nodes need in all."""
    return np.frexp(needed.sum(axis=1).astype(np.float64))[1].astype(np.int64)


def _bucket(
    store: GraphStore, node_type: str, asked: Fanout, width: list[int], shapes: Shapes
) -> Bucket:
    fanout = {key: count for (key, _), count in zip(asked, width, strict=True) if count}
    fitting = max(shapes.most_slots // max(sum(fanout.values()), 1), 1)
    num_rows = min(fitting, shapes.most_rows, _padded(store.num_nodes[node_type]))
    room = {node_type: 0}
    for key, count in fanout.items():
        sender = parse_key(key)[0]
        room[sender] = room.get(sender, 0) + num_rows * count
    rows = {
        name: (num_rows if name == node_type else 0, _padded(min(size, store.num_nodes[name])))
        for name, size in sorted(room.items())
    }
    budget = Budget(
        rows=tuple(rows.items()),
        fanout=tuple((key, (count,)) for key, count in sorted(fanout.items())),
        texts=(),
    )
    return Bucket(fanout, layout_of(budget), num_rows)


def _padded(count: int) -> int:
    return -(-count // _MULTIPLE) * _MULTIPLE
