"""Distillation: logits of pairs drawn to those that a cross-encoder gave."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How the teacher's logits join the loss.

    Attributes:
      kind: Nothing, the squared difference of the logits, or the cross-entropy against the
        teacher's probability.
      weight: Of the term.
      temperature: Divides the teacher's logits.
    """

    kind: Literal["none", "mse", "bce"] = "none"
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0.0:
            raise ValueError(f"temperature {self.temperature} is not above 0")
        if self.weight <= 0.0:
            raise ValueError(f"weight {self.weight} is not above 0; kind none leaves it out")


def distill_loss(
    logits: Float[Array, " B"],
    teacher: Float[Array, " B"],
    mask: Bool[Array, " B"],
    config: DistillConfig,
) -> Float[Array, ""]:
    """Mean over the real rows that have a teacher, in float32; 0 where none has.

    Args:
      logits: One per pair.
      teacher: The cross-encoder's logit; NaN where it gave none.
      mask: True for real rows.
      config: Of the term; not `none`.
    """
    taught = mask & ~jnp.isnan(teacher)
    logits = logits.astype(jnp.float32)
    target = jnp.where(taught, teacher, 0.0).astype(jnp.float32) / config.temperature
    if config.kind == "mse":
        rows = jnp.square(logits - target)
    else:
        rows = jax.nn.softplus(logits) - jax.nn.sigmoid(target) * logits
    total = jnp.sum(jnp.where(taught, rows, 0.0))
    return total / jnp.maximum(jnp.sum(taught), 1)
