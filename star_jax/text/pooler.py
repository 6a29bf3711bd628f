"""The part of pooling that joins layers, and what of it is learned (SPEC 1.2).

Learned parts add zero before they are trained, so that a run starts from the plain mean.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from star_jax.text.pooling import PoolingConfig, TokenPool, pool_tokens, rms_normalise
from star_jax.text.stack import Encoded

_HEADS = 8
_LATENTS = 512


class Pooler(nn.Module):
    """From an encoder's states to one vector per text, not yet of unit length."""

    config: PoolingConfig
    num_layers: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, encoded: Encoded, pool: TokenPool) -> Float[Array, "R S D"]:
        """Joins the layers that the config names.

        Args:
          encoded: With `pooled` where more than the last layer counts.
          pool: Which tokens count.
        """
        config = self.config
        last = encoded.normed if config.final_norm_on_last else encoded.last
        if config.token == "latent":
            last = LatentAttention(self.dtype, name="latent")(last)
        vector = pool_tokens(last, pool)
        if encoded.pooled is None:
            return vector
        states = [*encoded.pooled[:-1], vector]
        states = jnp.stack([states[i] for i in self._layers()])
        states = rms_normalise(states) if config.norm_each_layer else states
        if config.layers == "learned":
            logits = self.param("layer_logits", nn.initializers.zeros, (len(states),))
            return jnp.einsum("l,lrsd->rsd", jax.nn.softmax(logits), states, precision="highest")
        mean = jnp.mean(states, axis=0)
        if config.layers == "attention":
            return mean + LayerAttention(name="layers")(states)
        return mean

    def _layers(self) -> tuple[int, ...]:
        if isinstance(self.config.layers, tuple):
            return self.config.layers
        first = 0 if self.config.include_embedding_layer else 1
        return tuple(range(first, self.num_layers + 1))


class LatentAttention(nn.Module):
    """Each token attends to learned latents, then passes an MLP (NV-Embed, arXiv 2405.17428)."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "R L D"]) -> Float[Array, "R L D"]:
        """The states plus what the latents and the MLP add to them."""
        width = x.shape[-1]
        latents = self.param("latents", nn.initializers.normal(1.0), (_LATENTS, width))
        norm = nn.LayerNorm(dtype=self.dtype, name="norm")
        attend = nn.MultiHeadDotProductAttention(
            _HEADS,
            dtype=self.dtype,
            out_kernel_init=nn.initializers.zeros,
            deterministic=True,
            force_fp32_for_softmax=True,
            name="attention",
        )
        shared = jnp.broadcast_to(latents.astype(x.dtype), (len(x), *latents.shape))
        x = x + attend(norm(x), shared)
        hidden = nn.gelu(
            nn.Dense(4 * width, dtype=self.dtype, name="up")(
                nn.LayerNorm(dtype=self.dtype, name="mlp_norm")(x)
            )
        )
        down = nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="down")
        return x + down(hidden)


class LayerAttention(nn.Module):
    """A learned query attends to the layers' vectors of a text (arXiv 2409.02727)."""

    @nn.compact
    def __call__(self, states: Float[Array, "layers R S D"]) -> Float[Array, "R S D"]:
        """What the query gets."""
        width = states.shape[-1]
        query = self.param("query", nn.initializers.normal(1.0), (width,))
        of_text = jnp.moveaxis(states, 0, 2)
        attend = nn.MultiHeadDotProductAttention(
            _HEADS, out_kernel_init=nn.initializers.zeros, deterministic=True, name="attention"
        )
        asked = jnp.broadcast_to(query, (*of_text.shape[:2], 1, width))
        return attend(asked, of_text)[:, :, 0]
