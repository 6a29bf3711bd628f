"""Softmax over the receivers of the batch, from the logits of all pairs of rows (SPEC 3.4)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def in_batch_softmax(
    logits: Float[Array, "shards B B"],
    label: Float[Array, "shards B"],
    mask: Bool[Array, "shards B"],
    linked: Bool[Array, "shards B B"],
    log_q: Float[Array, "shards B"] | None = None,
) -> Float[Array, ""]:
    """Mean over real positive rows of -log softmax at their own column, in float32.

    The negatives of a row are the receivers of the other rows of its device, those of negative
    pairs among them.

    Args:
      logits: Of the row's sender with the column's receiver.
      label: 1 applied, 0 not, of the pairs on the diagonal.
      mask: True for real pairs.
      linked: Where sender and receiver are known to belong together: no negatives.
      log_q: Log of how often a batch holds the column's receiver: popular ones are met as negatives
        more often, which their logits make up for (Bengio and Senecal 2008). None: no correction.
    """
    own = jnp.eye(logits.shape[-1], dtype=bool)[None]
    candidate = own | (mask[:, None, :] & ~linked)
    if log_q is not None:
        logits = logits - log_q[:, None, :]
    scores = jnp.where(candidate, logits.astype(jnp.float32), -jnp.inf)
    rows = jax.nn.logsumexp(scores, axis=-1) - jnp.diagonal(logits, axis1=1, axis2=2)
    weight = jnp.where(mask, label, 0.0)
    total = jnp.sum(jnp.where(weight > 0, rows * weight, 0.0))
    return total / jnp.maximum(jnp.sum(weight), 1.0)
