"""The heterogeneous attention encoder: padded subgraph to one embedding per seed (SPEC 3.3).

For a node v: q = W_q h_v; k_u = W_k^rel h_u, plus a bias from the edge's weight and age; one
softmax over all valid neighbours u; m_v = concat_heads sum_u a_u W_v^rel h_u;
h'_v = W_o act(U [h_v; m_v]).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from star_jax.graph.attention import Pooling
from star_jax.graph.batches import Neighbours, Subgraph
from star_jax.graph.messages import (
    Attention,
    Hidden,
    LayerWeights,
    dense_messages,
    segment_messages,
)
from star_jax.graph.schema import parse_key
from star_jax.graph.segments import hop_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphEncoderConfig:
    """Sizes and options of one encoder."""

    dim: int = 200  # Width between the layers, and of the embedding.
    multiplier: int = 4  # Hidden width of a layer = multiplier * dim.
    layers: int = 2
    heads: int = 4
    pooling: Pooling = "self_attention"
    include_receiver: bool = True  # A node joins its own key set.
    activation: Literal["leaky_relu", "linear"] = "leaky_relu"
    skip: Literal["none", "residual", "jumping_knowledge"] = "residual"
    dual: bool = True  # Separate parameters per role; the feature slices are shared.
    dropout: float = 0.0  # Of the hidden units of a layer.
    edge_dropout: float = 0.0  # A node loses all edges of a relation with this probability.
    batch_norm: bool = True
    norm_momentum: float = 0.9  # Of the running statistics.
    unit_norm: bool = False
    path: Literal["dense", "jraph"] = "dense"  # jraph: the reference over segments, slower.

    def __post_init__(self) -> None:
        for name in ("dim", "multiplier", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, needed at least 1")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        for name in ("dropout", "edge_dropout", "norm_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, needed 0 <= {name} < 1")


def receiving_types(
    keys: tuple[str, ...], seed_types: tuple[str, ...], layers: int
) -> tuple[tuple[str, ...], ...]:
    """Per layer, the node types whose rows a seed of `seed_types` can depend on after it."""
    reached = [frozenset(seed_types)]
    for _ in range(layers - 1):
        ends = [parse_key(key) for key in keys]
        reached.append(reached[-1] | {sender for sender, _, end in ends if end in reached[-1]})
    return tuple(tuple(sorted(types)) for types in reversed(reached))


def num_rounds(
    keys: tuple[str, ...], seed_types: tuple[str, ...], layers: int, node_type: str
) -> int:
    """Layers, from the first on, that update nodes of a type: all of them for `seed_types`."""
    return sum(node_type in types for types in receiving_types(keys, seed_types, layers))


class GraphEncoder(nn.Module):
    """One role's encoder.

    Attributes:
      config: Options.
      keys: Every edge key of the graph; parameters exist for those that can reach a seed.
      seed_types: Node types of seeds of this role.
      axis_name: Mapped axis over which the statistics of a batch are summed; None for none.
    """

    config: GraphEncoderConfig
    keys: tuple[str, ...]
    seed_types: tuple[str, ...]
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, subgraph: Subgraph, features: Hidden, seed_type: str, train: bool
    ) -> Float[Array, "S E"]:
        """One embedding per seed row of `seed_type`.

        A type that is none of `seed_types` has no parameters in the last layers. Its row is the
        one that the first layer without them reads of it.

        Args:
          subgraph: As many hops as there are layers that update `seed_type`; see `num_rounds`.
          features: First-layer features of every node table.
          seed_type: Of the seeds.
          train: Dropout and the statistics of this batch; else the running statistics.
        """
        config = self.config
        rounds = num_rounds(self.keys, self.seed_types, config.layers, seed_type)
        if len(subgraph.hops) != rounds:
            raise ValueError(
                f"subgraph has {len(subgraph.hops)} hops, needed {rounds}, one per layer that "
                f"updates {seed_type}"
            )
        hidden = features
        num_seeds = hidden[seed_type].shape[0]
        if rounds:
            num_seeds = hop_blocks(subgraph, seed_type)[seed_type][0]
        outputs = [hidden[seed_type][:num_seeds]]
        all_types = receiving_types(self.keys, self.seed_types, config.layers)
        for number, types in enumerate(all_types[:rounds]):
            layer = GraphLayer(config, self.keys, types, name=f"layer_{number}")
            hidden = layer(subgraph, hidden, seed_type, rounds - number, train)
            outputs.append(hidden[seed_type][:num_seeds])
        if seed_type not in self.seed_types:
            return outputs[-1]
        mask = jnp.asarray(subgraph.nodes[seed_type].mask)[:num_seeds]
        return _ending(config, self.axis_name, seed_type, outputs, mask, train)


class EncoderEnding(nn.Module):
    """What follows the layers of a `GraphEncoder`, with its parameters.

    Attributes:
      config: Of the encoder.
      node_type: One of its seed types.
    """

    config: GraphEncoderConfig
    node_type: str

    @nn.compact
    def __call__(self, outputs: Sequence[Float[Array, "S D"]]) -> Float[Array, "S E"]:
        """Embeddings by the running statistics.

        Args:
          outputs: Rows of the same nodes before the first layer, after it, and so on; the last
            alone where nothing joins them.
        """
        mask = jnp.ones(outputs[-1].shape[0], bool)
        return _ending(self.config, None, self.node_type, outputs, mask, train=False)


def _ending(
    config: GraphEncoderConfig,
    axis_name: str | None,
    seed_type: str,
    outputs: Sequence[Float[Array, "S D"]],
    mask: Bool[Array, " S"],
    train: bool,
) -> Float[Array, "S E"]:
    """Its submodules belong to the module that calls it."""
    embedding = outputs[-1]
    if config.skip == "jumping_knowledge":
        joined = jnp.concatenate(outputs, axis=-1)
        embedding = nn.Dense(config.dim, use_bias=False, name="jump")(joined)
    if config.batch_norm:
        norm = MaskedBatchNorm(config.norm_momentum, axis_name, name=f"norm_{seed_type}")
        embedding = norm(embedding, mask, train)
    if config.unit_norm:
        square = jnp.sum(embedding**2, axis=-1, keepdims=True)
        embedding = embedding * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
    return embedding


class MaskedBatchNorm(nn.Module):
    """Batch normalisation over real rows only, of all devices together.

    Attributes:
      momentum: Share of the old running statistics that a step keeps.
      axis_name: Mapped axis over which sums are taken as well.
    """

    momentum: float
    axis_name: str | None

    @nn.compact
    def __call__(
        self, rows: Float[Array, "S E"], mask: Bool[Array, " S"], train: bool
    ) -> Float[Array, "S E"]:
        """Normalises by the statistics of the batch when training, else by the running ones."""
        width = rows.shape[1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(width))
        variance = self.variable("batch_stats", "variance", lambda: jnp.ones(width))
        if train:
            rows = jnp.where(mask[:, None], rows, 0.0)
            count = jnp.maximum(self._sum(jnp.sum(mask).astype(rows.dtype)), 1.0)
            now_mean = self._sum(jnp.sum(rows, axis=0)) / count
            centred = jnp.where(mask[:, None], rows - now_mean[None], 0.0)
            now_variance = self._sum(jnp.sum(centred**2, axis=0)) / count
            if not self.is_initializing():
                keep = self.momentum
                mean.value = keep * mean.value + (1 - keep) * now_mean
                variance.value = keep * variance.value + (1 - keep) * now_variance
        else:
            now_mean, now_variance = mean.value, variance.value
        factor = jax.lax.rsqrt(now_variance + 1e-3) * scale
        return (rows - now_mean[None]) * factor[None] + bias[None]

    def _sum(self, value: Array) -> Array:
        return value if self.axis_name is None else jax.lax.psum(value, self.axis_name)


class GraphLayer(nn.Module):
    """One round of messages. Kernels of all types, and of all relations, are stacked in one array.

    Attributes:
      config: Of the encoder.
      keys: Every edge key of the graph.
      types: Node types that receive messages.
    """

    config: GraphEncoderConfig
    keys: tuple[str, ...]
    types: tuple[str, ...]

    @nn.compact
    def __call__(
        self, subgraph: Subgraph, hidden: Hidden, seed_type: str, depth: int, train: bool
    ) -> dict[str, Float[Array, "_ D"]]:
        """New rows of the first `depth` hops' blocks; other rows are not needed any more.

        Args:
          subgraph: Where the neighbours are.
          hidden: Rows so far.
          seed_type: Node type of the seeds.
          depth: Hops whose nodes are updated.
          train: Whether to drop units and relations.
        """
        weights = self._weights()
        hops = tuple(
            {key: table for key, table in hop.items() if parse_key(key)[2] in self.types}
            for hop in subgraph.hops[:depth]
        )
        subgraph = subgraph._replace(hops=self._drop_edges(hops, train))
        messages = dense_messages if self.config.path == "dense" else segment_messages
        message = messages(weights, self.config.pooling, subgraph, hidden, seed_type)
        combine = self._combination()
        return {
            name: combine(self.types.index(name), hidden[name][: rows.shape[0]], rows, train)
            for name, rows in message.items()
        }

    def _combination(self) -> Callable[..., Float[Array, "Q D"]]:
        """h'_v from h_v and m_v, with parameters of every type."""
        config, num_types = self.config, len(self.types)
        width = config.multiplier * config.dim
        kernel = _kernel_init(1, 2)
        zeros = nn.initializers.zeros
        first = self.param("hidden_kernel", kernel, (num_types, 2 * config.dim, width))
        first_bias = self.param("hidden_bias", zeros, (num_types, width))
        second = self.param("output_kernel", kernel, (num_types, width, config.dim))
        second_bias = self.param("output_bias", zeros, (num_types, config.dim))
        dropout = nn.Dropout(config.dropout)

        def combine(
            number: int, own: Float[Array, "Q D"], message: Float[Array, "Q D"], train: bool
        ) -> Float[Array, "Q D"]:
            joined = jnp.concatenate([own, message], axis=-1)
            units = joined @ first[number] + first_bias[number][None]
            if config.activation == "leaky_relu":
                units = nn.leaky_relu(units, 0.2)
            units = dropout(units, deterministic=not train)
            new = units @ second[number] + second_bias[number][None]
            return own + new if config.skip == "residual" else new

        return combine

    def _weights(self) -> LayerWeights:
        dim, heads = self.config.dim, self.config.heads
        keys = tuple(key for key in self.keys if parse_key(key)[2] in self.types)
        kernel = _kernel_init(1, (2, 3))
        shape = (dim, heads, dim // heads)

        number = len(keys) + (len(self.types) if self.config.include_receiver else 0)
        return LayerWeights(
            types=self.types,
            keys=keys,
            include_receiver=self.config.include_receiver,
            query=self.param("query_kernel", kernel, (len(self.types), *shape)),
            attention=Attention(
                self.param("key_kernel", kernel, (number, *shape)),
                self.param("value_kernel", kernel, (number, *shape)),
                self.param("edge_bias", nn.initializers.zeros, (number, 3, heads)),
            ),
        )

    def _drop_edges(
        self, hops: tuple[dict[str, Neighbours], ...], train: bool
    ) -> tuple[dict[str, Neighbours], ...]:
        rate = self.config.edge_dropout
        if not train or rate == 0.0:
            return hops

        def drop(table: Neighbours) -> Neighbours:
            shape = (table.mask.shape[0], 1)
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, shape)
            return table._replace(mask=table.mask & kept)

        return tuple({key: drop(table) for key, table in hop.items()} for hop in hops)


def _kernel_init(in_axis: int, out_axis: int | tuple[int, ...]) -> nn.initializers.Initializer:
    """Uniform, of variance 1 / fan-in; the first axis counts kernels."""
    return nn.initializers.variance_scaling(
        1.0, "fan_in", "uniform", in_axis=in_axis, out_axis=out_axis, batch_axis=(0,)
    )
