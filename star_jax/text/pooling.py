"""From the states of a text's tokens to one vector (SPEC 1.2).

Every pooling here is a weighted sum over the real tokens of each layer, then over layers.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Token = Literal["last", "mean", "weighted_mean", "first"]
Layers = Literal["last", "all"] | tuple[int, ...]
AttentionSpan = Literal["causal", "bidirectional"]


@dataclass(frozen=True, kw_only=True)
class PoolingConfig:
    """How states become a vector; None takes the default of the base's family.

    Attributes:
      token: Which tokens count: the last real one (EOS), all alike, all with weights growing by
        position, or the first.
      layers: `last`, `all` blocks, or block numbers, where 0 is the embedding layer.
      attention: What a token sees. `first` under `causal` is refused: the first token would see
        only itself, so that every text had the same vector.
      norm_each_layer: Scales each layer's vector to RMS 1 before the mean over layers; otherwise
        late layers, whose states are larger, weigh more.
      final_norm_on_last: Takes the last block's state after the model's final norm.
    """

    token: Token | None = None
    layers: Layers | None = None
    attention: AttentionSpan | None = None
    norm_each_layer: bool = False
    final_norm_on_last: bool = True

    def __post_init__(self) -> None:
        if self.token == "first" and self.attention == "causal":
            raise ValueError(
                "pooling.token=first with pooling.attention=causal gives every text the same "
                "vector; needed attention=bidirectional or another token"
            )
        if isinstance(self.layers, tuple) and (not self.layers or min(self.layers) < 0):
            raise ValueError(
                f"pooling.layers {self.layers} needs at least one block number from 0 on"
            )


def token_weights(mask: Bool[Array, "U L"], token: Token) -> Float[Array, "U L"]:
    """Weight of each token in its text's vector; sums to 1, or to 0 where a text is all padding.

    Args:
      mask: True for real tokens, which come first (right padding).
      token: As in `PoolingConfig`.
    """
    length = mask.shape[1]
    real = mask.astype(jnp.float32)
    position = jnp.arange(length)[None, :]
    count = jnp.sum(mask, axis=1, keepdims=True)
    if token == "last":
        # From the mask, never by looking for a token: pad may equal EOS.
        return jnp.where(position == count - 1, real, 0.0)
    if token == "first":
        return jnp.where(position == 0, real, 0.0)
    weight = real if token == "mean" else real * (position + 1)
    return weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)


def pool_tokens(state: Float[Array, "U L D"], weights: Float[Array, "U L"]) -> Float[Array, "U D"]:
    """Weighted sum over tokens, in float32."""
    return jnp.einsum("ul,uld->ud", weights, state.astype(jnp.float32), precision="highest")


def rms_normalise(vector: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Scales vectors to a root mean square of 1; zeros stay zeros."""
    square = jnp.mean(jnp.square(vector), axis=-1, keepdims=True)
    return vector / jnp.sqrt(jnp.maximum(square, 1e-12))


def unit(vector: Float[Array, "*rows E"]) -> Float[Array, "*rows E"]:
    """L2-normalises in float32; zeros stay zeros and have finite gradients."""
    vector = vector.astype(jnp.float32)
    square = jnp.sum(jnp.square(vector), axis=-1, keepdims=True)
    return vector / jnp.sqrt(jnp.maximum(square, 1e-24))
