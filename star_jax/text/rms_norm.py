"""The norm of the families without LayerNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class RmsNorm(nn.Module):
    """Root-mean-square norm of the last axis, computed in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """The states at scale 1 times the learned scale, in their dtype."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(square + self.epsilon)
        scale = jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))
        return (wide * scale).astype(x.dtype)
