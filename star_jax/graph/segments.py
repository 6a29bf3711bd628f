"""The typed front of jraph, the only module that imports it: segment operations and GraphsTuple.

jraph is archived upstream and has no types; what the reference path needs of it is here.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import jraph
from jaxtyping import Array, Bool, Float, Int

from star_jax.graph.batches import Subgraph
from star_jax.graph.schema import parse_key

GraphsTuple: TypeAlias = jraph.GraphsTuple


class EdgeFeatures(NamedTuple):
    """What an edge of the `GraphsTuple` of a subgraph carries."""

    relation: Int[Array, " M"]  # Position of the edge key in the sorted keys of the subgraph.
    hop: Int[Array, " M"]  # Hop of the receiver: 0 for edges into seeds.
    weight: Float[Array, " M"]
    age: Float[Array, " M"]


def segment_sum(
    data: Float[Array, "M ..."], segments: Int[Array, " M"], num_segments: int
) -> Float[Array, "N ..."]:
    """Sums the rows of each segment; zeros where a segment has none."""
    return jnp.asarray(jraph.segment_sum(data, segments, num_segments))


def segment_softmax(
    logits: Float[Array, "M H"], segments: Int[Array, " M"], num_segments: int
) -> Float[Array, "M H"]:
    """Softmax over the rows of each segment, per column."""
    return jnp.asarray(jraph.segment_softmax(logits, segments, num_segments))


def edge_mask(graph: GraphsTuple) -> Bool[Array, " M"]:
    """True for real edges; jraph keeps padding edges in the last graph, which is never real."""
    return jnp.asarray(jraph.get_edge_padding_mask(graph))


def edge_features(graph: GraphsTuple) -> EdgeFeatures:
    """The edges of a graph from `to_graphs_tuple`."""
    assert isinstance(graph.edges, EdgeFeatures)
    return graph.edges


def hop_blocks(subgraph: Subgraph, seed_type: str) -> dict[str, tuple[int, ...]]:
    """Rows per node type and hop < the number of hops, from the shapes alone.

    A type has rows at a hop if a table of the hop before has it as its sender. If no table ends
    in them, all rows that are left are counted: they receive nothing, so nothing depends on it.
    """
    sizes: dict[str, list[int]] = {name: [] for name in subgraph.nodes}
    reached = {seed_type}
    for tables in subgraph.hops:
        into = {parse_key(key)[2]: table.mask.shape[0] for key, table in tables.items()}
        for name, nodes in subgraph.nodes.items():
            rest = nodes.node.shape[0] - sum(sizes[name])
            sizes[name].append(into.get(name, rest) if name in reached else 0)
        reached = {parse_key(key)[0] for key in tables}
    return {name: tuple(each) for name, each in sizes.items()}


def row_offsets(hidden: Mapping[str, Float[Array, "_ D"]]) -> dict[str, int]:
    """Row of every type's first node when all types lie one after the other, sorted by name."""
    names = sorted(hidden)
    sizes = [hidden[name].shape[0] for name in names]
    return dict(zip(names, itertools.accumulate(sizes, initial=0), strict=False))


def edge_keys(subgraph: Subgraph) -> tuple[str, ...]:
    """The edge keys of all hops, sorted: `EdgeFeatures.relation` counts them."""
    return tuple(sorted({key for tables in subgraph.hops for key in tables}))


class _EdgeColumns(NamedTuple):
    """Every neighbour table as a list of edges, rows counted over all types."""

    senders: list[Int[Array, " M"]]
    receivers: list[Int[Array, " M"]]
    masks: list[Bool[Array, " M"]]
    features: list[EdgeFeatures]


def _edge_columns(
    subgraph: Subgraph, offsets: Mapping[str, int], blocks: Mapping[str, tuple[int, ...]]
) -> _EdgeColumns:
    relations = {key: number for number, key in enumerate(edge_keys(subgraph))}
    senders, receivers, masks, features = [], [], [], []
    for hop, tables in enumerate(subgraph.hops):
        for key, table in sorted(tables.items()):
            sender_type, _, receiver_type = parse_key(key)
            num_queries, width = table.mask.shape
            first = offsets[receiver_type] + sum(blocks[receiver_type][:hop])
            senders.append(jnp.asarray(table.index).reshape(-1) + offsets[sender_type])
            receivers.append(jnp.repeat(first + jnp.arange(num_queries), width))
            masks.append(jnp.asarray(table.mask).reshape(-1))
            of_all = jnp.ones(num_queries * width, jnp.int32)
            features.append(
                EdgeFeatures(
                    relation=of_all * relations[key],
                    hop=of_all * hop,
                    weight=jnp.asarray(table.weight).reshape(-1),
                    age=jnp.asarray(table.age).reshape(-1),
                )
            )
    return _EdgeColumns(senders, receivers, masks, features)


def to_graphs_tuple(
    subgraph: Subgraph,
    hidden: Mapping[str, Float[Array, "_ D"]],
    seed_type: str,
) -> GraphsTuple:
    """A padded subgraph as jraph knows it: one graph of real edges, one of padding.

    Nodes of all types lie one after the other (`row_offsets`), then one padding node. Real edges
    come first in a stable order; padding edges join the padding node to itself. All shapes are
    static, so this works inside `jax.jit`.

    Args:
      subgraph: From a sampler.
      hidden: Features of one width; of the first rows of a table where later ones have no edge.
      seed_type: Node type of the seeds.

    Returns:
      Graph with `nodes` of shape [rows + 1, D] and `EdgeFeatures` as `edges`.
    """
    offsets, blocks = row_offsets(hidden), hop_blocks(subgraph, seed_type)
    num_rows = sum(rows.shape[0] for rows in hidden.values())
    senders, receivers, masks, features = _edge_columns(subgraph, offsets, blocks)
    mask = _concatenate(masks, bool)
    order = jnp.argsort(~mask, stable=True)
    mask = mask[order]
    num_edges = mask.shape[0]
    real_edges = jnp.sum(mask)
    width = next(iter(hidden.values())).shape[1]
    nodes = [hidden[name] for name in sorted(hidden)]
    ends = [
        jnp.where(mask, _concatenate(each, jnp.int32)[order], num_rows)
        for each in (senders, receivers)
    ]
    return GraphsTuple(
        nodes=jnp.concatenate([*nodes, jnp.zeros((1, width), nodes[0].dtype)]),
        edges=EdgeFeatures(
            *(
                jnp.where(mask, _concatenate(column, dtype)[order], 0)
                for column, dtype in zip(
                    zip(*features, strict=True) if features else ((),) * 4,
                    (jnp.int32, jnp.int32, jnp.float32, jnp.float32),
                    strict=True,
                )
            )
        ),
        senders=ends[0],
        receivers=ends[1],
        n_node=jnp.asarray([num_rows, 1]),
        n_edge=jnp.stack([real_edges, num_edges - real_edges]),
        globals=None,
    )


def _concatenate(arrays: Sequence[Array], dtype: type) -> Array:
    if not arrays:
        return jnp.zeros((0,), dtype)
    return jnp.concatenate(arrays).astype(dtype)
