"""The first layer: one linear slice per node type and feature, one bias per type (SPEC 3.2).

h0 = act(sum_f W_{type,f} x_f + b_type). A slice has no bias of its own, so that adding or removing
a feature changes the number of parameters by exactly its input width times the output width.
"""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from star_jax.graph.batches import NodeTable

Activation = Literal["linear", "leaky_relu"]
TextFeature = Literal["vectors", "zeros", "off"]
IdentityUpdate = Literal["dense", "adagrad", "adam"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Which features enter, for all node types that have them.

    Attributes:
      text: "vectors": those of `star export-text`. "zeros": zeros in their place, which is the
        graph alone in the very program that was compiled for the model with texts. "off": no
        weights for texts.
      identity: One learned vector per node of an attribute type. Nodes that few training edges
        end in share one: what a vector of their own would hold is the noise it began with.
      identity_types: Empty: every type that is no end of a task.
      identity_min_edges: Training edges that make a vector of one's own.
      identity_rows: The most rows of a type's tables; the nodes of a type that has more of them
        share rows by hash. None: a row per node.
      identity_update: How the identity tables, signatures included, are trained. "dense": as all
        other parameters, which touches every row in every step. "adagrad", "adam": by the row
        rules of `train/rows.py`, which touch the rows that a batch reads; for large tables.
      identity_rate: With a row rule, its rate where that of other parameters is 1.
      categorical: One learned vector per code.
      dense: Columns of numbers.
      activation: Of the sum of the slices; "leaky_relu" (0.2) is the paper's.
    """

    text: TextFeature = "vectors"
    identity: bool = True
    identity_types: tuple[str, ...] = ()
    identity_min_edges: int = 1
    identity_rows: int | None = None
    identity_update: IdentityUpdate = "dense"
    identity_rate: float = 1.0
    categorical: bool = True
    dense: bool = True
    activation: Activation = "linear"

    def __post_init__(self) -> None:
        if self.identity_min_edges < 1:
            raise ValueError(f"identity_min_edges {self.identity_min_edges} must be >= 1")
        if self.identity_rows is not None and self.identity_rows < 1:
            raise ValueError(f"identity_rows {self.identity_rows} must be >= 1, or None")
        if not self.identity_rate > 0:
            raise ValueError(f"identity_rate {self.identity_rate} must be > 0")
        if self.identity_update == "dense" and self.identity_rate != 1.0:
            raise ValueError(
                f"identity_rate {self.identity_rate} with identity_update=dense; give "
                "optimizer.rate_multipliers instead"
            )


@dataclasses.dataclass(frozen=True)
class NodeFeatures:
    """The features of one node type, all sizes static.

    Attributes:
      node_type: Its name.
      num_identities: Rows of its identity tables; 0 for none.
      text_size: Width of the text vectors; 0 for none.
      cardinalities: Codes of every categorical column, 0 = missing included.
      dense_size: Columns of numbers, those that say what is missing among them.
      hashed: There are more nodes than rows, which they share by hash.
      predicted: Categorical columns that are no features, since the model predicts them.
    """

    node_type: str
    num_identities: int
    text_size: int
    cardinalities: tuple[int, ...]
    dense_size: int
    hashed: bool = False
    predicted: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing tells nodes of the type apart."""
        num_columns = len(self.cardinalities) - len(self.predicted)
        return not any((self.num_identities, self.text_size, num_columns, self.dense_size))


class SliceLayer(nn.Module):
    """Features of one node type to one row per node."""

    features: NodeFeatures
    dim: int
    activation: Activation

    @nn.compact
    def __call__(self, nodes: NodeTable) -> Float[Array, "R {self.dim}"]:
        """Sums the slices; a node without a text gets a learned vector in its place.

        Missing categories have a code, and missing numbers a column, of their own.
        """
        sizes = self.features
        scale = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        hidden = jnp.broadcast_to(
            self.param("bias", nn.initializers.zeros, (self.dim,)),
            (nodes.node.shape[0], self.dim),
        )
        # Of the type, not of the feature, whose size must stay input width times output width.
        missing = self.param("missing", nn.initializers.zeros, (self.dim,))
        if sizes.text_size:
            kernel = self.param("text_kernel", scale, (sizes.text_size, self.dim))
            # Unit vectors to entries of variance one, as the other features have.
            projected = nodes.texts @ (kernel * math.sqrt(sizes.text_size))
            row = jnp.asarray(nodes.text_row)
            hidden = hidden + jnp.where((row >= 0)[:, None], projected[row], missing[None])
        if sizes.num_identities:
            table = self.param(
                "identity_embedding", nn.initializers.normal(1.0), (sizes.num_identities, self.dim)
            )
            # Shared by the nodes that training hardly meets.
            unseen = self.param("identity_unseen", nn.initializers.zeros, (self.dim,))
            seen = jnp.asarray(nodes.seen)[:, None]
            hidden = hidden + jnp.where(seen, look_up(table, nodes), unseen[None])
        for column, cardinality in enumerate(sizes.cardinalities):
            if column in sizes.predicted:
                continue
            table = self.param(
                f"categorical_{column}_embedding",
                nn.initializers.normal(1.0),
                (cardinality, self.dim),
            )
            hidden = hidden + table[nodes.categorical[:, column]]
        if sizes.dense_size:
            kernel = self.param("dense_kernel", scale, (sizes.dense_size, self.dim))
            hidden = hidden + nodes.dense @ kernel
        return nn.leaky_relu(hidden, 0.2) if self.activation == "leaky_relu" else hidden


def look_up(table: Float[Array, "rows D"], nodes: NodeTable) -> Float[Array, "R D"]:
    """One vector per node; sums of several rows have the variance of one."""
    if nodes.identity is None:
        return table[jnp.asarray(nodes.node)]
    identity = jnp.asarray(nodes.identity)
    return jnp.sum(table[identity], axis=1) / math.sqrt(identity.shape[1])


def text_of(nodes: NodeTable, num_rows: int) -> Float[Array, "{num_rows} E"]:
    """The text vectors of the first rows as they came, zeros where a row has none."""
    row = jnp.asarray(nodes.text_row)[:num_rows]
    if not nodes.texts.size:
        return jnp.zeros((num_rows, nodes.texts.shape[1]))
    return jnp.where((row >= 0)[:, None], jnp.asarray(nodes.texts)[row], 0.0)
