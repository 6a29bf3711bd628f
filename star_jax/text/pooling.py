"""From the states of a text's tokens to one vector (SPEC 1.2).

Here is what needs no parameters: sums over the real tokens of each layer. `pooler.py` has what is
learned, and joins the layers.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from star_jax.text.packing import Spans

Token = Literal["last", "mean", "weighted_mean", "first", "latent"]
Layers = Literal["last", "all", "learned", "attention"] | tuple[int, ...]
AttentionSpan = Literal["causal", "bidirectional"]


@dataclass(frozen=True, kw_only=True)
class PoolingConfig:
    """How states become a vector; None takes the default of the base's family.

    Attributes:
      token: Which tokens count: the last real one (EOS), all alike, all with weights growing by
        position, or the first. `latent` is a mean over what each token gets by attending to
        learned latents (NV-Embed), of the last layer.
      layers: `last`, `all` blocks, or block numbers, where 0 is the embedding layer. `learned`
        is all of them with learned softmax weights, `attention` all of them plus what a learned
        query gets by attending to them; both start as `all`.
      attention: What a token sees. `first` under `causal` is refused: the first token would see
        only itself, so that every text had the same vector.
      exclude_prompt: Leaves the tokens of the prompt, and those before it, out of the pooling.
      include_embedding_layer: Counts layer 0 among all layers. Of a last token it is the same
        vector for every text, so it only adds a bias.
      norm_each_layer: Scales each layer's vector to RMS 1 before the mean over layers; otherwise
        late layers, whose states are larger, weigh more.
      final_norm_on_last: Takes the last block's state after the model's final norm.
    """

    token: Token | None = None
    layers: Layers | None = None
    attention: AttentionSpan | None = None
    exclude_prompt: bool = False
    include_embedding_layer: bool = False
    norm_each_layer: bool = False
    final_norm_on_last: bool = True

    @property
    def learns(self) -> bool:
        """Whether it has parameters."""
        return self.token == "latent" or self.layers in ("learned", "attention")

    def __post_init__(self) -> None:
        if self.token == "first" and self.attention == "causal":
            raise ValueError(
                "pooling.token=first with pooling.attention=causal gives every text the same "
                "vector; needed attention=bidirectional or another token"
            )
        if self.token == "latent" and self.layers not in (None, "last"):
            raise ValueError(
                f"pooling.token=latent with pooling.layers={self.layers}: latents attend to the "
                "last layer alone; needed layers=last"
            )
        if self.exclude_prompt and self.token in ("last", "first"):
            raise ValueError(
                f"pooling.exclude_prompt with pooling.token={self.token}: one token counts "
                "anyway; needed mean, weighted_mean or latent"
            )
        if isinstance(self.layers, tuple) and (not self.layers or min(self.layers) < 0):
            raise ValueError(
                f"pooling.layers {self.layers} needs at least one block number from 0 on"
            )
        if self.include_embedding_layer and self.layers in ("last", *_tuples(self.layers)):
            raise ValueError(
                f"pooling.include_embedding_layer with pooling.layers={self.layers}: it joins all "
                "layers only; needed layers=all, learned or attention, or 0 in a list"
            )


class TokenPool(NamedTuple):
    """Which tokens make the vector of each text: one each, or a weighted sum."""

    at: Int[Array, "R S"] | None
    """Place of the one token in its row; -1 where there is no text."""
    weights: Float[Array, "R S L"] | None
    """They sum to 1, or to 0 where there is no text."""


def token_pool(
    where: Spans, lengths: Int[Array, "R S"], skipped: Int[Array, "R S"] | None, token: Token
) -> TokenPool:
    """What `pool_tokens` needs.

    Args:
      where: The texts lie in their rows.
      lengths: Of the texts; no search for an end token, since padding may be the same id.
      skipped: Leading tokens that do not count, of a mean; a text of nothing else counts whole.
      token: As in `PoolingConfig`; the mean of `latent` is over all tokens.
    """
    if token in ("last", "first"):
        ends = jnp.cumsum(lengths, axis=1)
        at = ends - 1 if token == "last" else ends - lengths
        return TokenPool(jnp.where(lengths > 0, at, -1), None)
    slots = jnp.arange(lengths.shape[1])
    weight = (where.slot[:, None, :] == slots[None, :, None]).astype(jnp.float32)
    place = where.position[:, None, :]
    if skipped is not None:
        place = place - jnp.where(skipped < lengths, skipped, 0)[:, :, None]
        weight = jnp.where(place >= 0, weight, 0.0)
    if token == "weighted_mean":
        weight = weight * (place + 1)
    return TokenPool(None, weight / jnp.maximum(jnp.sum(weight, axis=2, keepdims=True), 1.0))


def pool_tokens(state: Float[Array, "R L D"], pool: TokenPool) -> Float[Array, "R S D"]:
    """The token, or the weighted sum over tokens, of each text, in float32."""
    if pool.at is not None:
        taken = jnp.take_along_axis(state, jnp.maximum(pool.at, 0)[:, :, None], axis=1)
        return jnp.where(pool.at[:, :, None] >= 0, taken.astype(jnp.float32), 0.0)
    return jnp.einsum("rsl,rld->rsd", pool.weights, state.astype(jnp.float32), precision="highest")


def rms_normalise(vector: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Scales vectors to a root mean square of 1; zeros stay zeros."""
    square = jnp.mean(jnp.square(vector), axis=-1, keepdims=True)
    return vector / jnp.sqrt(jnp.maximum(square, 1e-12))


def unit(vector: Float[Array, "*rows E"]) -> Float[Array, "*rows E"]:
    """L2-normalises in float32; zeros stay zeros and have finite gradients."""
    vector = vector.astype(jnp.float32)
    square = jnp.sum(jnp.square(vector), axis=-1, keepdims=True)
    return vector / jnp.sqrt(jnp.maximum(square, 1e-24))


def truncate(vector: Float[Array, "*rows E"], width: int) -> Float[Array, "*rows E"]:
    """The first `width` components as a unit vector; zeros behind them (Matryoshka)."""
    kept = jnp.arange(vector.shape[-1]) < width
    return unit(jnp.where(kept, vector, 0.0))


def _tuples(layers: Layers | None) -> tuple[tuple[int, ...], ...]:
    return (layers,) if isinstance(layers, tuple) else ()
