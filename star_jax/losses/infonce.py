"""InfoNCE over all negatives of the batch, in both directions (arXiv 1807.03748)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from star_jax.losses.contrastive import (
    Component,
    Contrast,
    RequestCombine,
    Rows,
    combine,
    no_matches,
    strangers,
)

_MASKED = -1e30  # Finite: -inf minus -inf is NaN.


@dataclass(frozen=True, kw_only=True)
class InfonceConfig:
    """How a positive is set against the others.

    Attributes:
      temperature: Divides similarities.
      request_combine: Per component, or once for their mean or elementwise maximum.
      false_negative_margin: A negative more similar than the positive by more than this is taken
        for a match nobody recorded and left out (Qwen3-Embedding); None leaves none out.
    """

    temperature: float = 0.02
    request_combine: RequestCombine = "separate"
    false_negative_margin: float | None = 0.1

    def __post_init__(self) -> None:
        if self.temperature <= 0.0:
            raise ValueError(f"temperature {self.temperature} is not above 0")


def infonce_loss(
    document: Component, components: tuple[Component, ...], rows: Rows, config: InfonceConfig
) -> Contrast:
    """Mean over anchors of the sum over components of both directions' mean cross-entropy.

    A document is set against the requests of other rows that are no known match, and a request
    against the documents of other rows, those of its member's own negatives among them. An anchor
    is a positive row with a negative in some direction; without any anchor the loss is 0.
    """
    anchor = rows.mask & document.present & (rows.label > 0.5)
    d = document.vector.astype(jnp.float32)
    others, documents = strangers(rows), no_matches(rows).T & document.present[None, :]
    total = jnp.zeros((), jnp.float32)
    counted = jnp.zeros(anchor.shape, bool)
    for vector, present in combine(components, config.request_combine):
        q = vector.astype(jnp.float32)
        scores = jnp.matmul(d, q.T, precision="highest")
        anchors = (anchor & present)[:, None]
        for of_anchor, valid in (
            (scores, others & present[None, :] & anchors),
            (scores.T, documents & anchors),
        ):
            losses, found = _cross_entropy(of_anchor, valid, config)
            total += 0.5 * jnp.sum(losses)
            counted |= found
    num_anchors = jnp.sum(counted).astype(jnp.float32)
    return Contrast(total / jnp.maximum(num_anchors, 1.0), num_anchors)


def _cross_entropy(
    scores: Float[Array, "B B"], valid: Bool[Array, "B B"], config: InfonceConfig
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """Of the diagonal against the valid columns of each row; 0 where there are none."""
    positive = jnp.diagonal(scores)[:, None]
    if config.false_negative_margin is not None:
        limit = jax.lax.stop_gradient(positive) + config.false_negative_margin
        valid &= jax.lax.stop_gradient(scores) <= limit
    gaps = jnp.where(valid, (scores - positive) / config.temperature, _MASKED)
    found = jnp.any(valid, axis=1)
    losses = jax.nn.logsumexp(jnp.pad(gaps, ((0, 0), (1, 0))), axis=1)  # The positive's gap is 0.
    return jnp.where(found, losses, 0.0), found
