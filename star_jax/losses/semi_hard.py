"""Contrastive losses with one semi-hard negative per positive and component (SPEC 1.1, Eq. 3, 4).

The negatives of a document are the requests of other rows of the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from star_jax.losses.contrastive import (
    Component,
    Contrast,
    RequestCombine,
    Rows,
    combine,
    strangers,
)

_TIE = 1e-6  # A matmul may give equal vectors scores some roundings apart; equal ones are no pair.


@dataclass(frozen=True, kw_only=True)
class SemiHardConfig:
    """How negatives are chosen.

    Attributes:
      temperature: Divides similarities.
      hinge: The margin m of `triplet_hinge`.
      anchors: Rows that get a negative: those that applied, or all real ones.
      request_combine: Mine per component, or once against their mean or elementwise maximum.
      fallback: What a positive without a semi-hard negative compares with: nothing (it leaves
        the mean too), its easiest or its hardest valid negative.
      min_gap: A negative must be less similar than the positive by more than this.
      margin: A semi-hard negative must be less than this below the positive; None is no bound.
    """

    temperature: float = 0.02
    hinge: float = 0.2
    anchors: Literal["positive", "all"] = "positive"
    request_combine: RequestCombine = "separate"
    fallback: Literal["none", "easiest", "hardest"] = "none"
    min_gap: float = 0.0
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0.0:
            raise ValueError(f"temperature {self.temperature} is not above 0")
        if self.hinge <= 0.0:
            raise ValueError(f"hinge {self.hinge} is not above 0")
        if self.min_gap < 0.0:
            raise ValueError(f"min_gap {self.min_gap} is below 0")
        if self.margin is not None and self.margin <= self.min_gap:
            raise ValueError(f"margin {self.margin} is not above min_gap {self.min_gap}")


def semi_hard_loss(
    document: Component, components: tuple[Component, ...], rows: Rows, config: SemiHardConfig
) -> Contrast:
    """Mean over anchors of the sum over components of softplus((s- - s+) / temperature).

    Vectors have unit length. Everything is computed in float32. An anchor counts when some
    component gives it a negative; without any anchor the loss is 0.
    """
    return _over_anchors(
        document, components, rows, config, lambda gap: jax.nn.softplus(gap / config.temperature)
    )


def triplet_hinge_loss(
    document: Component, components: tuple[Component, ...], rows: Rows, config: SemiHardConfig
) -> Contrast:
    """As `semi_hard_loss`, with max(0, m - s+ + s-) of the same negatives."""
    return _over_anchors(
        document, components, rows, config, lambda gap: jax.nn.relu(config.hinge + gap)
    )


def choose_negatives(
    scores: Float[Array, "B B"], valid: Bool[Array, "B B"], config: SemiHardConfig
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """Row j of the negative of each row i, and whether there is one (Eq. 4).

    Args:
      scores: s(d_i, q_j); the diagonal holds the positives.
      valid: Whether row j may be a negative of row i at all.
      config: Of the choice.
    """
    positive = jnp.diagonal(scores)[:, None]
    semi_hard = valid & (scores < positive - max(config.min_gap, _TIE))
    if config.margin is not None:
        semi_hard &= scores > positive - config.margin
    found = jnp.any(semi_hard, axis=1)
    chosen = jnp.argmax(jnp.where(semi_hard, scores, -jnp.inf), axis=1)
    if config.fallback == "none":
        return chosen, found
    if config.fallback == "easiest":
        other = jnp.argmin(jnp.where(valid, scores, jnp.inf), axis=1)
    else:
        other = jnp.argmax(jnp.where(valid, scores, -jnp.inf), axis=1)
    return jnp.where(found, chosen, other), jnp.any(valid, axis=1)


def _over_anchors(
    document: Component,
    components: tuple[Component, ...],
    rows: Rows,
    config: SemiHardConfig,
    penalty: Callable[[Array], Array],
) -> Contrast:
    """Mean over anchors of the sum over components of penalty(s- - s+)."""
    anchor = rows.mask & document.present
    if config.anchors == "positive":
        anchor &= rows.label > 0.5
    candidates = strangers(rows)
    d = document.vector.astype(jnp.float32)
    total = jnp.zeros((), jnp.float32)
    counted = jnp.zeros(anchor.shape, bool)
    for vector, present in combine(components, config.request_combine):
        q = vector.astype(jnp.float32)
        scores = jax.lax.stop_gradient(jnp.matmul(d, q.T, precision="highest"))
        valid = candidates & present[None, :] & (anchor & present)[:, None]
        negative, found = choose_negatives(scores, valid, config)
        gap = jnp.where(found, jnp.sum(d * (q[negative] - q), axis=1), 0.0)
        total += jnp.sum(jnp.where(found, penalty(gap), 0.0))
        counted |= found
    num_anchors = jnp.sum(counted).astype(jnp.float32)
    return Contrast(total / jnp.maximum(num_anchors, 1.0), num_anchors)
