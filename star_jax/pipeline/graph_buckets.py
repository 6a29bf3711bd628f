"""One-hop samples of fixed shapes: nodes that need about as many neighbours go together.

A bucket has, per relation, as many slots as the node in it that needs most; a hub without equals
has one to itself, so that its neighbours alone bound what a batch holds.
"""

from collections.abc import Iterator
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
_STEPS = 8  # Sizes of buckets that are tried per power of two.

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
    program_slots: int = 1 << 20


class Bucket(NamedTuple):
    """The shape of one batch.

    Attributes:
      most: Neighbours, over all relations, of the nodes that belong here at most.
      fanout: Neighbours to draw. A node that needs fewer than it was given has them all.
      layout: Of the sample.
      num_rows: Nodes.
    """

    most: int
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
    """Shapes for all nodes of a type, narrow ones first; a function of the arguments alone.

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

    counts: dict[int, int] = {}
    for chunk in chunks():
        values, num = np.unique(_rounded(chunk.sum(axis=1)), return_counts=True)
        for value, count in zip(values.tolist(), num.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + count
    ends = _cut(sorted(counts.items()), shapes.program_slots)
    widths = np.zeros((len(ends), len(fanout)), np.int64)
    for chunk in chunks():
        np.maximum.at(widths, np.searchsorted(ends, chunk.sum(axis=1)), chunk)
    keys = [key for key, _ in fanout]
    return [
        _bucket(store, node_type, end, dict(zip(keys, width.tolist(), strict=True)), shapes)
        for end, width in zip(ends, widths, strict=True)
    ]


def _rounded(counts: Int64[np.ndarray, " S"]) -> Int64[np.ndarray, " S"]:
    """Up to one of `_STEPS` sizes per power of two, so that there are few."""
    shift = np.frexp(np.maximum(counts, 1).astype(np.float64))[1].astype(np.int64)
    step = np.int64(1) << np.maximum(shift - _STEPS.bit_length(), 0)
    return -(-counts // step) * step


def _cut(counts: list[tuple[int, int]], program_slots: int) -> list[int]:
    """Ends of the ranges of sizes that pad least, programs counted as slots.

    Args:
      counts: Sizes in order, and how many nodes have each.
      program_slots: As in `Shapes`.
    """
    sizes = np.asarray([size for size, _ in counts], np.int64)
    before = np.concatenate([[0], np.cumsum([count for _, count in counts])]).astype(np.int64)
    cost, last = [0], []
    for j, size in enumerate(sizes.tolist()):
        costs = np.asarray(cost) + (before[j + 1] - before[: j + 1]) * size + program_slots
        last.append(int(np.argmin(costs)))
        cost.append(int(costs[last[-1]]))
    ends, j = [], len(sizes)
    while j:
        ends.append(int(sizes[j - 1]))
        j = last[j - 1]
    return ends[::-1]


def _bucket(
    store: GraphStore, node_type: str, most: int, width: dict[str, int], shapes: Shapes
) -> Bucket:
    fanout = {key: count for key, count in width.items() if count}
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
    return Bucket(most, fanout, layout_of(budget), num_rows)


def _padded(count: int) -> int:
    return -(-count // _MULTIPLE) * _MULTIPLE
