"""Messages of one encoder layer, twice: over [rows, k] tables, and over a jraph GraphsTuple.

The first is what trains; the second is the obvious one that the tests compare it with, in values
and gradients. Both are pure functions of the same weights.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from star_jax.graph.attention import (
    Folded,
    Pooling,
    Projected,
    Senders,
    attend,
    attend_segments,
    edge_bias,
)
from star_jax.graph.batches import Neighbours, Subgraph, width_class
from star_jax.graph.schema import parse_key
from star_jax.graph.segments import (
    edge_features,
    edge_keys,
    edge_mask,
    hop_blocks,
    row_offsets,
    to_graphs_tuple,
)

_FEWER = 4  # Below that, an operation of its own costs more than it saves.

Hidden = Mapping[str, Float[Array, "_ D"]]


class Attention(NamedTuple):
    """Keys, values and biases of relations.

    Per head the bias is a constant, a slope in log(1 + weight) and one in age.
    """

    key: Float[Array, "R D H K"]
    value: Float[Array, "R D H K"]
    bias: Float[Array, "R 3 H"]


class LayerWeights(NamedTuple):
    """Parameters of one layer's attention, in the order of the names that index them."""

    types: tuple[str, ...]  # That receive messages.
    keys: tuple[str, ...]  # Edge keys into them.
    include_receiver: bool
    query: Float[Array, "T D H K"]  # By type.
    attention: Attention  # By edge key; then, if receivers join their keys, by type.

    def own(self, node_type: str) -> int:
        """Where a type's attention to itself stands."""
        return len(self.keys) + self.types.index(node_type)


def dense_messages(
    weights: LayerWeights, pooling: Pooling, subgraph: Subgraph, hidden: Hidden, seed_type: str
) -> dict[str, Float[Array, "_ D"]]:
    """Messages to the rows of the subgraph's hops, over [rows, k] tables.

    Args:
      weights: Parameters of the layer.
      pooling: How neighbours are weighed.
      subgraph: Its hops are those whose nodes get messages.
      hidden: Rows of every type that sends or receives.
      seed_type: Node type of the seeds.

    Returns:
      By receiver type one row per node of the hops, in the order of the node table.
    """
    blocks = hop_blocks(subgraph, seed_type)
    sending = _Sending(
        hidden,
        jnp.concatenate([hidden[name] for name in sorted(hidden)]),
        {
            key: _project(weights.attention, weights.keys.index(key), hidden[parse_key(key)[0]])
            for key in edge_keys(subgraph)
            if _project_first(key, subgraph, hidden)
        },
    )
    messages = {}
    for number, name in enumerate(weights.types):
        if name not in hidden:
            continue
        parts, start = [], 0
        for hop, tables in enumerate(subgraph.hops):
            rows = hidden[name][start : start + blocks[name][hop]]
            start += blocks[name][hop]
            if not rows.shape[0]:
                continue
            into = {key: table for key, table in tables.items() if parse_key(key)[2] == name}
            if not into and weights.include_receiver:  # All weight is on the row itself.
                value = weights.attention.value[weights.own(name)]
                parts.append(jnp.einsum("qd,dhk->qhk", rows, value).reshape(rows.shape))
                continue
            senders = _senders(weights, sending, into)
            if weights.include_receiver:
                senders.append(_own(weights, name, rows))
            query = jnp.einsum("qd,dhk->qhk", rows, weights.query[number])
            parts.append(attend(query, senders, pooling).reshape(rows.shape))
        messages[name] = jnp.concatenate(parts or [hidden[name][:0]])
    return messages


def segment_messages(
    weights: LayerWeights, pooling: Pooling, subgraph: Subgraph, hidden: Hidden, seed_type: str
) -> dict[str, Float[Array, "_ D"]]:
    """The reference of `dense_messages`: one GraphsTuple, one softmax over its segments."""
    graph = to_graphs_tuple(subgraph, hidden, seed_type)
    offsets, blocks = row_offsets(hidden), hop_blocks(subgraph, seed_type)
    receiving = [name for name in weights.types if name in hidden]
    tables = [_Table(parse_key(key)[0], weights.keys.index(key)) for key in edge_keys(subgraph)]
    num_relations = len(tables)
    if weights.include_receiver:
        tables += [_Table(name, weights.own(name)) for name in receiving]
    if not tables:
        return {n: jnp.zeros((sum(blocks[n]), hidden[n].shape[1])) for n in receiving}
    keys, values, starts = _all_projections(weights.attention, tables, hidden)
    queries = [
        jnp.einsum("qd,dhk->qhk", hidden[name], weights.query[weights.types.index(name)])
        if name in weights.types
        else jnp.zeros((hidden[name].shape[0], *keys.shape[1:]), keys.dtype)
        for name in sorted(hidden)
    ]
    query = jnp.concatenate([*queries, jnp.zeros((1, *keys.shape[1:]), keys.dtype)])

    real, edges = edge_mask(graph), edge_features(graph)
    senders, receivers = jnp.asarray(graph.senders), jnp.asarray(graph.receivers)
    shift = jnp.asarray(
        [starts[r] - offsets[tables[r].sender_type] for r in range(num_relations)] or [0]
    )
    rows = jnp.where(real, senders + shift[edges.relation], keys.shape[0] - 1)
    biases = [weights.attention.bias[table.number] for table in tables[:num_relations]]
    biases = jnp.stack(biases or [jnp.zeros((3, keys.shape[1]), keys.dtype)])
    bias = edge_bias(biases[edges.relation], real, edges.weight, edges.age)
    for start, table in zip(starts[num_relations:], tables[num_relations:], strict=True):
        loop = jnp.arange(hidden[table.sender_type].shape[0])
        rows = jnp.concatenate([rows, start + loop])
        receivers = jnp.concatenate([receivers, offsets[table.sender_type] + loop])
        real = jnp.concatenate([real, jnp.ones(loop.shape, bool)])
        constant = weights.attention.bias[table.number, 0]
        bias = jnp.concatenate(
            [bias, jnp.broadcast_to(constant[None], (loop.shape[0], keys.shape[1]))]
        )
    message = attend_segments(query, keys[rows], values[rows], bias, receivers, real, pooling)

    message = message.reshape(message.shape[0], -1)
    return {name: message[offsets[name] : offsets[name] + sum(blocks[name])] for name in receiving}


class _Table(NamedTuple):
    """Rows of one sender type under one relation's projections."""

    sender_type: str
    number: int


def _all_projections(
    attention: Attention, tables: list[_Table], hidden: Hidden
) -> tuple[Float[Array, "_ H K"], Float[Array, "_ H K"], list[int]]:
    """Keys and values of all tables one after the other, a zero row last, and where each starts."""
    made = []
    for kernel in ("key", "value"):
        rows = [
            jnp.einsum("nd,dhk->nhk", hidden[t.sender_type], getattr(attention, kernel)[t.number])
            for t in tables
        ]
        zero = jnp.zeros((1, *rows[0].shape[1:]), rows[0].dtype)
        made.append(jnp.concatenate([*rows, zero]))
    sizes = [hidden[table.sender_type].shape[0] for table in tables]
    return made[0], made[1], list(itertools.accumulate(sizes, initial=0))[:-1]


class _Sending(NamedTuple):
    """Rows of senders, in the forms in which they are read."""

    hidden: Hidden
    everything: Float[Array, "N D"]  # Those of all types, in the order of their names.
    projected: Mapping[str, tuple[Float[Array, "_ D"], Float[Array, "_ D"]]]  # By edge key.


def _senders(
    weights: LayerWeights, sending: _Sending, into: Mapping[str, Neighbours]
) -> list[Senders]:
    """What reaches one block over the tables into it, each read in the cheapest way."""
    offsets = row_offsets(sending.hidden)
    senders, listed = [], []
    for key, table in sorted(into.items()):
        if key in sending.projected:
            senders.append(_looked_up(weights, key, table, sending.projected[key]))
        elif table.mask.shape[1] == 1:  # Folding saves no product here, and costs larger ones.
            senders.append(_one_each(weights, key, table, sending.hidden))
        else:
            listed.append(_listed(weights, key, table, offsets))
    groups = _similar_widths(listed)
    folded = [_folded_senders(weights.attention, sending.everything, group) for group in groups]
    return senders + folded


def _project_first(key: str, subgraph: Subgraph, hidden: Hidden) -> bool:
    """Whether a relation has far fewer sender rows than receiver rows: keys are made first."""
    receivers = sum(hop[key].mask.shape[0] for hop in subgraph.hops if key in hop)
    return _FEWER * hidden[parse_key(key)[0]].shape[0] < receivers


def _project(
    attention: Attention, number: int, rows: Float[Array, "N D"]
) -> tuple[Float[Array, "N D"], Float[Array, "N D"]]:
    """Keys and values of a relation for rows of its senders."""
    num_relations, dim = attention.key.shape[:2]
    shape = (num_relations, dim, -1)
    return (
        rows @ attention.key.reshape(shape)[number],
        rows @ attention.value.reshape(shape)[number],
    )


def _looked_up(
    weights: LayerWeights,
    key: str,
    table: Neighbours,
    projected: tuple[Float[Array, "N D"], Float[Array, "N D"]],
) -> Senders:
    """Neighbours whose keys and values were made for all senders: there are fewer of them."""
    keys, values = projected
    index = jnp.asarray(table.index)
    return _projected_senders(weights, key, table, Projected(keys[index], values[index]))


def _one_each(weights: LayerWeights, key: str, table: Neighbours, hidden: Hidden) -> Senders:
    """Neighbours of one column, gathered and then projected."""
    rows = hidden[parse_key(key)[0]][jnp.asarray(table.index)[:, 0]]
    keys, values = _project(weights.attention, weights.keys.index(key), rows)
    return _projected_senders(weights, key, table, Projected(keys[:, None], values[:, None]))


def _projected_senders(
    weights: LayerWeights, key: str, table: Neighbours, source: Projected
) -> Senders:
    mask, weight, age = (jnp.asarray(part)[:, None] for part in table[1:])
    bias = weights.attention.bias[weights.keys.index(key)]
    return Senders(source, mask, edge_bias(bias[None, None, None], mask, weight, age))


def _own(weights: LayerWeights, node_type: str, rows: Float[Array, "Q D"]) -> Senders:
    """Every row as its own neighbour."""
    number = weights.own(node_type)
    keys, values = _project(weights.attention, number, rows)
    shape = (rows.shape[0], 1, 1)
    bias = weights.attention.bias[number, 0]
    return Senders(
        Projected(keys[:, None], values[:, None]),
        jnp.ones(shape, bool),
        jnp.broadcast_to(bias[None, None, None], (*shape, bias.shape[0])),
    )


class _Listed(NamedTuple):
    """One relation into a block, its senders counted over all types."""

    number: int  # Of the relation among the weights.
    neighbours: Neighbours


def _listed(
    weights: LayerWeights, key: str, table: Neighbours, offsets: Mapping[str, int]
) -> _Listed:
    index = jnp.asarray(table.index) + offsets[parse_key(key)[0]]
    return _Listed(weights.keys.index(key), table._replace(index=index))


def _similar_widths(relations: Sequence[_Listed]) -> list[list[_Listed]]:
    """What may be stacked."""
    by_size: dict[int, list[_Listed]] = {}
    for each in relations:
        by_size.setdefault(width_class(each.neighbours.mask.shape[1]), []).append(each)
    return [by_size[size] for size in sorted(by_size)]


def _folded_senders(
    attention: Attention, everything: Float[Array, "N D"], relations: Sequence[_Listed]
) -> Senders:
    """Several relations in one: their tables padded to one width and stacked."""
    width = max(each.neighbours.mask.shape[1] for each in relations)

    def stacked(part: str) -> Array:
        columns = (jnp.asarray(getattr(each.neighbours, part)) for each in relations)
        return jnp.stack([jnp.pad(c, ((0, 0), (0, width - c.shape[1]))) for c in columns], axis=1)

    numbers = np.asarray([each.number for each in relations])
    mask = stacked("mask")
    bias = attention.bias[numbers][None, :, None]
    return Senders(
        Folded(everything, stacked("index"), attention.key[numbers], attention.value[numbers]),
        mask,
        edge_bias(bias, mask, stacked("weight"), stacked("age")),
    )
