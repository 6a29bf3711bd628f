"""Binary cross-entropy of pairs, from logits (SPEC 1.1, Eq. 2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def binary_cross_entropy(
    logits: Float[Array, " B"],
    label: Float[Array, " B"],
    mask: Bool[Array, " B"],
    positive_weight: float,
) -> Float[Array, ""]:
    """Mean over real rows of -[y log sigma(x) + (1 - y) log(1 - sigma(x))], in float32.

    Args:
      logits: One per pair.
      label: 1 applied, 0 not.
      mask: True for real rows.
      positive_weight: Weight of a positive row, where a negative one weighs 1.
    """
    logits, label = logits.astype(jnp.float32), label.astype(jnp.float32)
    rows = label * jax.nn.softplus(-logits) + (1.0 - label) * jax.nn.softplus(logits)
    weight = jnp.where(mask, 1.0 + (positive_weight - 1.0) * label, 0.0)
    total = jnp.sum(jnp.where(mask, rows * weight, 0.0))
    return total / jnp.maximum(jnp.sum(weight), jnp.finfo(jnp.float32).tiny)
