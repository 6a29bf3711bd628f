"""Attention from the sampled neighbours of all relations to the node that receives their edges.

One softmax runs over the valid neighbours of a node, whatever their relation (SPEC 3.3). `attend`
is the dense hot path over [rows, k] tables; `attend_segments` is the same over an edge list.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from star_jax.graph.segments import segment_softmax, segment_sum

Pooling = Literal["self_attention", "mean"]

_MASKED = -1e30  # Finite: -inf minus -inf is NaN, which jax_debug_nans would stop at.


class Folded(NamedTuple):
    """Relations whose neighbours are aggregated first and projected afterwards.

    q . (W_k h) = (W_k^T q) . h and sum_u a_u W_v h_u = W_v sum_u a_u h_u: the projections run over
    receivers, not over senders. Heads come one after the other, so that every product reads and
    writes its arrays in the order in which they lie: on CPU cores transposing them took longer.
    """

    rows: Float[Array, "N D"]
    senders: Int[Array, "Q R k"]
    key: Float[Array, "R D H K"]
    value: Float[Array, "R D H K"]

    def logits(self, query: Float[Array, "Q H K"]) -> Float[Array, "Q M H"]:
        """Products with every neighbour; M = R k."""
        gathered = self.rows[self.senders]
        num_rows, num_relations, _, dim = gathered.shape
        made = []
        for head in range(query.shape[1]):
            key = self.key[:, :, head].reshape(num_relations * dim, -1)
            folded = (query[:, head] @ key.T).reshape(num_rows, num_relations, dim)
            made.append(jnp.einsum("qrd,qrnd->qrn", folded, gathered).reshape(num_rows, -1))
        return jnp.stack(made, axis=-1)

    def message(self, weights: Float[Array, "Q M H"]) -> Float[Array, "Q H K"]:
        """Weighted sum of all neighbours' values."""
        gathered = self.rows[self.senders]
        num_rows, num_relations, _, dim = gathered.shape
        made = []
        for head in range(weights.shape[2]):
            share = weights[:, :, head].reshape(self.senders.shape)
            aggregated = jnp.einsum("qrn,qrnd->qrd", share, gathered)
            value = self.value[:, :, head].reshape(num_relations * dim, -1)
            made.append(aggregated.reshape(num_rows, -1) @ value)
        return jnp.stack(made, axis=1)


class Projected(NamedTuple):
    """Neighbours whose keys and values are there: at most one of a relation, or few in all.

    Sums within a head, and weights spread over one, are products with the heads' indicators: on
    CPU cores a sum over the last axis is not vectorised, a product is.
    """

    keys: Float[Array, "Q M D"]  # D = H K.
    values: Float[Array, "Q M D"]

    def logits(self, query: Float[Array, "Q H K"]) -> Float[Array, "Q M H"]:
        """Products with every neighbour."""
        products = self.keys * query.reshape(query.shape[0], 1, -1)
        return products @ _indicators(query.shape[1], query.shape[2], query.dtype)

    def message(self, weights: Float[Array, "Q M H"]) -> Float[Array, "Q H K"]:
        """Weighted sum of all neighbours' values."""
        num_rows, _, num_heads = weights.shape
        head_width = self.values.shape[2] // num_heads
        spread = weights @ _indicators(num_heads, head_width, weights.dtype).T
        return jnp.sum(spread * self.values, axis=1).reshape(num_rows, num_heads, head_width)


def _indicators(num_heads: int, head_width: int, dtype: jnp.dtype) -> Float[Array, "D H"]:
    """1 where a number of a row belongs to a head."""
    return jnp.repeat(jnp.eye(num_heads, dtype=dtype), head_width, axis=0)


class Senders(NamedTuple):
    """What reaches a block of receivers over one or more relations."""

    source: Folded | Projected
    mask: Bool[Array, "Q R k"]
    bias: Float[Array, "Q R k H"]  # From `edge_bias`.


def edge_bias(
    bias: Float[Array, "*#M 3 H"],
    mask: Bool[Array, "*M"],
    weight: Float[Array, "*M"],
    age: Float[Array, "*M"],
) -> Float[Array, "*M H"]:
    """What an edge's relation, weight and age add to its logits.

    Args:
      bias: Constant, per log(1 + weight), per age; one row per edge, or per relation.
      mask: Padding may hold anything; it is cleared before it can reach a gradient.
      weight: At least 0.
      age: As in `Neighbours`.
    """
    weight = jnp.log1p(jnp.where(mask, weight, 0.0))[..., None]
    age = jnp.where(mask, age, 0.0)[..., None]
    return bias[..., 0, :] + bias[..., 1, :] * weight + bias[..., 2, :] * age


def attend(
    query: Float[Array, "Q H K"], senders: Sequence[Senders], pooling: Pooling
) -> Float[Array, "Q H K"]:
    """Softmax over all neighbours of each row, then the weighted sum of their values.

    Args:
      query: One row per receiver.
      senders: Together all neighbours, the receiver itself among them if it joins its keys.
      pooling: "mean" weighs all neighbours alike.

    Returns:
      One row per receiver; zeros where it has no neighbour.
    """
    message = jnp.zeros_like(query)
    if not senders:
        return message
    num_rows, num_heads, head_width = query.shape
    mask = jnp.concatenate([each.mask.reshape(num_rows, -1) for each in senders], axis=1)
    if pooling == "mean":
        count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        weights = jnp.broadcast_to((mask / count)[:, :, None], (*mask.shape, num_heads))
    else:
        scaled = query / head_width**0.5
        logits = [
            each.source.logits(scaled) + each.bias.reshape(num_rows, -1, num_heads)
            for each in senders
        ]
        joined = jnp.concatenate(logits, axis=1).astype(jnp.float32)
        joined = jnp.where(mask[:, :, None], joined, _MASKED)
        weights = jnp.where(mask[:, :, None], jax.nn.softmax(joined, axis=1), 0.0)
    start = 0
    for each in senders:
        stop = start + each.mask.shape[1] * each.mask.shape[2]
        message += each.source.message(weights[:, start:stop])
        start = stop
    return message


def attend_segments(
    query: Float[Array, "N H K"],
    key: Float[Array, "M H K"],
    value: Float[Array, "M H K"],
    bias: Float[Array, "M H"],
    receivers: Int[Array, " M"],
    mask: Bool[Array, " M"],
    pooling: Pooling,
) -> Float[Array, "N H K"]:
    """The reference of `attend`: edges in any order, receivers as segments.

    Args:
      query: One row per node.
      key: One row per edge, gathered from the edge's sender.
      value: As `key`.
      bias: From `edge_bias`.
      receivers: Node that each edge points to. Padding edges may point anywhere.
      mask: True for real edges; nothing else silences padding.
      pooling: As in `attend`.

    Returns:
      One row per node; zeros where no real edge arrives.
    """
    num_nodes, _, head_width = query.shape
    if pooling == "mean":
        count = segment_sum(mask.astype(value.dtype)[:, None], receivers, num_nodes)
        weights = (1.0 / jnp.maximum(count, 1.0))[receivers]
    else:
        logits = jnp.einsum("mhk,mhk->mh", query[receivers], key) / head_width**0.5 + bias
        logits = jnp.where(mask[:, None], logits.astype(jnp.float32), _MASKED)
        weights = segment_softmax(logits, receivers, num_nodes)
    weights = jnp.where(mask[:, None], weights, 0.0)
    return segment_sum(weights[:, :, None] * value, receivers, num_nodes)
