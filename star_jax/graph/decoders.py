"""Pairs of seeds to one logit: an MLP, a cosine or a dot product (SPEC 3.4)."""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from star_jax.graph.batches import HostOrDevice
from star_jax.graph.match import MatchConfig, MatchFeatures, MatchLayout

_COSINE_SCALE = 5.0  # Logit per unit of a part's cosine, at the start.


class SeedVectors(NamedTuple):
    """What a decoder may read of a seed; rows of the two roles join by index."""

    embedding: Float[HostOrDevice, "S E"]
    match: Float[HostOrDevice, "S X"]  # As `MatchLayout` says; no columns without a match part.

    def take(self, rows: HostOrDevice) -> "SeedVectors":
        """The vectors of some seeds."""
        return SeedVectors(*(part[rows] for part in self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """How two seeds become a logit.

    Attributes:
      kind: Of the embeddings' part. "softmax" scores as "dot" does, and is trained against the
        receivers of the batch in place of the labels of negative pairs.
      hidden_size: Of the MLP over [z_u; z_v; z_u * z_v] and what the match part adds.
      dropout: Of the MLP's hidden units; its inputs lose a third as many.
      match: What the two have in common, by node type; kind `mlp` only.
    """

    kind: Literal["mlp", "cosine", "dot", "softmax"] = "mlp"
    hidden_size: int = 256
    dropout: float = 0.3
    match: MatchConfig = dataclasses.field(default_factory=MatchConfig)

    def __post_init__(self) -> None:
        if self.hidden_size < 1:
            raise ValueError(f"hidden_size is {self.hidden_size}, needed at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, needed 0 <= dropout < 1")
        if self.match.enabled and self.kind != "mlp":
            raise ValueError(f"kind is {self.kind}, needed mlp where match.enabled is true")


class Decoder(nn.Module):
    """One task's decoder.

    Attributes:
      config: Options.
      layout: Of the match vectors; None without a match part.
    """

    config: DecoderConfig
    layout: MatchLayout | None

    @nn.compact
    def __call__(
        self, sender: SeedVectors, receiver: SeedVectors, train: bool
    ) -> Float[Array, "B ..."]:
        """One logit per pair of rows; `train` switches dropout on.

        With kind "softmax", `train` asks for the logits of every sender with every receiver.
        """
        u, v = jnp.asarray(sender.embedding), jnp.asarray(receiver.embedding)
        if self.config.kind == "mlp":
            return self._mlp(sender, receiver, train)
        bias = self.param("bias", nn.initializers.zeros, ())
        scale = self.param("scale", nn.initializers.ones, ())
        if self.config.kind == "softmax" and train:
            return scale * (u @ v.T) + bias
        product = u * v
        if self.config.kind == "cosine":
            square = jnp.sum(u**2, axis=-1) * jnp.sum(v**2, axis=-1)
            product *= jax.lax.rsqrt(jnp.maximum(square, 1e-12))[:, None]
        return scale * jnp.sum(product, axis=-1) + bias

    def _mlp(self, sender: SeedVectors, receiver: SeedVectors, train: bool) -> Float[Array, " B"]:
        u, v = jnp.asarray(sender.embedding), jnp.asarray(receiver.embedding)
        inputs = [u, v, u * v]
        width = u.shape[1]
        # The dot product is in reach at once; an MLP has to learn it.
        weight = self.param("product_kernel", nn.initializers.constant(1.0 / width), (width,))
        logit = (u * v) @ weight
        if self.layout is not None:
            products, cosines = MatchFeatures(self.layout)(
                jnp.asarray(sender.match), jnp.asarray(receiver.match)
            )
            inputs += [products, cosines]
            num_cosines = self.layout.num_cosines
            start = nn.initializers.constant(_COSINE_SCALE / max(num_cosines, 1))
            weight = self.param("cosine_kernel", start, (num_cosines,))
            logit += cosines[:, :num_cosines] @ weight
        rate = self.config.dropout
        joined = nn.Dropout(rate / 3, deterministic=not train)(jnp.concatenate(inputs, axis=-1))
        units = nn.leaky_relu(nn.Dense(self.config.hidden_size, name="hidden")(joined), 0.2)
        units = nn.Dropout(rate, deterministic=not train)(units)
        return logit + nn.Dense(1, name="output")(units)[:, 0]
