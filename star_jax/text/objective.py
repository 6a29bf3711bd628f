"""The loss of pairs from their vectors: BCE plus a contrastive term (SPEC 1.1, Eq. 1)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from star_jax.losses.bce import binary_cross_entropy
from star_jax.losses.contrastive import Component, Contrast, Rows
from star_jax.losses.distill import DistillConfig, distill_loss
from star_jax.losses.infonce import InfonceConfig, infonce_loss
from star_jax.losses.semi_hard import SemiHardConfig, semi_hard_loss, triplet_hinge_loss
from star_jax.text.pooling import truncate

Contrastive = Literal["semihard", "triplet_hinge", "infonce", "infonce+semihard", "none"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Loss of the pairs.

    Attributes:
      contrastive: Which contrastive term; two joined by + are added.
      contrastive_weight: lambda_c.
      positive_weight: Weight of a positive row in the BCE.
      semi_hard: Of `semihard` and `triplet_hinge`.
      infonce: Of `infonce`.
      distill: Draws the logits to a teacher's.
      widths: The loss is the mean over vectors cut to these widths (Matryoshka, arXiv
        2205.13147); none is the full width alone.
    """

    contrastive: Contrastive = "semihard"
    contrastive_weight: float = 1.0
    positive_weight: float = 1.0
    semi_hard: SemiHardConfig = field(default_factory=SemiHardConfig)
    infonce: InfonceConfig = field(default_factory=InfonceConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.contrastive_weight >= 0:
            raise ValueError(f"contrastive_weight {self.contrastive_weight} must be >= 0")
        if not self.positive_weight > 0:
            raise ValueError(f"positive_weight {self.positive_weight} must be > 0")
        if any(width < 1 for width in self.widths) or len({*self.widths}) < len(self.widths):
            raise ValueError(f"widths {self.widths} needs different widths from 1 on")


class Vectors(NamedTuple):
    """Unit vectors per pair; zeros where missing."""

    document: Component
    profile: Component
    resume: Component


Score = Callable[[Vectors], Float[Array, " B"]]
"""Logit of every pair."""


def pair_loss(
    vectors: Vectors, rows: Rows, score: Score, config: ObjectiveConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss over the real rows of a batch, and its parts; with widths the mean over them.

    Args:
      vectors: Of all pairs that may be each other's negatives.
      rows: Labels and who is who.
      score: The scorer, applied to the vectors of every width.
      config: Of the loss.
    """
    if not config.widths:
        return _of_width(vectors, rows, score, config)
    by_width = {w: _of_width(cut(vectors, w), rows, score, config) for w in config.widths}
    metrics = dict(by_width[max(config.widths)][1])  # Its parts are those of the widest.
    metrics |= {f"loss@{width}": loss for width, (loss, _) in by_width.items()}
    loss = jnp.mean(jnp.stack([loss for loss, _ in by_width.values()]))
    return loss, metrics | {"loss": loss}


def cut(vectors: Vectors, width: int) -> Vectors:
    """The first components of every vector as unit vectors; zeros behind them."""
    return Vectors(*(Component(truncate(vector, width), present) for vector, present in vectors))


def _of_width(
    vectors: Vectors, rows: Rows, score: Score, config: ObjectiveConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    logits = score(vectors)
    bce = binary_cross_entropy(logits, rows.label, rows.mask, config.positive_weight)
    num_pairs = jnp.sum(rows.mask).astype(jnp.float32)
    right = ((logits > 0.0) == (rows.label > 0.5)) & rows.mask
    metrics = {
        "bce": bce,
        "accuracy": jnp.sum(right) / jnp.maximum(num_pairs, 1.0),
        "num_pairs": num_pairs,
    }
    loss = bce
    if config.distill.kind != "none":
        if rows.teacher is None:
            raise ValueError(f"distill.kind {config.distill.kind} got rows without a teacher")
        metrics["distill"] = distill_loss(logits, rows.teacher, rows.mask, config.distill)
        loss += config.distill.weight * metrics["distill"]
    for name, term in _contrasts(vectors, rows, config).items():
        loss += config.contrastive_weight * term.loss
        metrics |= {name: term.loss, f"{name}_anchors": term.num_anchors}
    return loss, {"loss": loss, **metrics}


def _contrasts(vectors: Vectors, rows: Rows, config: ObjectiveConfig) -> dict[str, Contrast]:
    request = (vectors.profile, vectors.resume)
    terms: dict[str, Callable[[], Contrast]] = {
        "semihard": lambda: semi_hard_loss(vectors.document, request, rows, config.semi_hard),
        "triplet_hinge": lambda: triplet_hinge_loss(
            vectors.document, request, rows, config.semi_hard
        ),
        "infonce": lambda: infonce_loss(vectors.document, request, rows, config.infonce),
    }
    names = [] if config.contrastive == "none" else config.contrastive.split("+")
    return {name: terms[name]() for name in names}
