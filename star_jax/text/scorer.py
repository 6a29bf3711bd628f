"""The pair head: from the vectors of a document and a request to a logit (SPEC 1.3)."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """The pair head.

    Attributes:
      hidden: Widths of the hidden layers; none leaves a weighted dot product.
    """

    hidden: tuple[int, ...] = (256,)

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden {self.hidden} holds a width below 1")


class PairScorer(nn.Module):
    """Hadamard products of document with profile and resume, then linear layers, in float32."""

    config: ScorerConfig

    @nn.compact
    def __call__(
        self,
        document: Float[Array, "B E"],
        profile: Float[Array, "B E"],
        resume: Float[Array, "B E"],
        has_resume: Bool[Array, " B"],
        has_profile: Bool[Array, " B"],
    ) -> Float[Array, " B"]:
        """Logit of each pair, from unit vectors; a missing component counts as zeros."""
        document, profile, resume = (
            vector.astype(jnp.float32) for vector in (document, profile, resume)
        )
        present = jnp.stack([has_profile, has_resume], axis=1).astype(jnp.float32)
        products = jnp.concatenate(
            [document * profile * present[:, :1], document * resume * present[:, 1:]], axis=1
        )
        # Products of unit vectors shrink with the width; unscaled, the head starts dead.
        scale = document.shape[1] ** 0.5
        x = jnp.concatenate([products * scale, present], axis=1)
        for i, width in enumerate(self.config.hidden):
            x = nn.leaky_relu(nn.Dense(width, name=f"hidden_{i}")(x))
        return nn.Dense(1, name="logit")(x)[:, 0]
