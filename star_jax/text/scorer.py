"""The pair head: from the vectors of a document and a request to a logit (SPEC 1.3)."""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

_COSINE_SCALE = 5.0  # Logit per unit of a part's cosine, at the start.

Feature = Literal["product", "request_product", "vectors", "difference"]


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """The pair head.

    Attributes:
      hidden: Widths of the hidden layers; none leaves a linear map, hence with `product` alone a
        weighted dot product.
      features: What it sees: `product` of the document with each part of the request,
        `request_product` of the two parts, the `vectors` themselves, and `difference`, the
        absolute one between the document and each part.
    """

    hidden: tuple[int, ...] = (256,)
    features: tuple[Feature, ...] = ("product",)

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden {self.hidden} holds a width below 1")
        if not self.features or len({*self.features}) < len(self.features):
            raise ValueError(f"features {self.features} needs different ones, at least one")


class PairScorer(nn.Module):
    """Features of document, profile and resume, then linear layers, in float32.

    With the feature `product`, a fresh head scores by the cosines of the two parts, as the base
    alone would: a few hundred steps need not find anew what pretraining knows.
    """

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
        d, p, r = (vector.astype(jnp.float32) for vector in (document, profile, resume))
        present = jnp.stack([has_profile, has_resume], axis=1).astype(jnp.float32)
        p, r = p * present[:, :1], r * present[:, 1:]
        features = {
            "product": lambda: [d * p, d * r],
            "request_product": lambda: [p * r],
            "vectors": lambda: [d, p, r],
            "difference": lambda: [
                jnp.abs(d - p) * present[:, :1],
                jnp.abs(d - r) * present[:, 1:],
            ],
        }
        parts = [(part, name) for name in self.config.features for part in features[name]()]
        # Products of unit vectors shrink with the width; unscaled, the head starts dead.
        scale = document.shape[1] ** 0.5
        x = jnp.concatenate([part for part, _ in parts], axis=1) * scale
        x = jnp.concatenate([x, present], axis=1)
        is_product = np.repeat([name == "product" for _, name in parts], document.shape[1])
        first = np.append(is_product / scale, [0.0, 0.0])  # Times x: the sum of the cosines.
        for i, width in enumerate(self.config.hidden):
            x = _dense(width, first, name=f"hidden_{i}")(x)
            x = nn.leaky_relu(x)
            first = first.any() * np.eye(1, width)[0]
        return _dense(1, _COSINE_SCALE * first, name="logit")(x)[:, 0]


def _dense(width: int, first: Float[np.ndarray, " N"], name: str) -> nn.Dense:
    """A layer that begins as usual, but for its first unit, which begins with these weights."""
    usual = nn.initializers.lecun_normal()

    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        kernel = usual(key, shape, dtype)
        return kernel.at[:, 0].set(first) if first.any() else kernel

    return nn.Dense(width, kernel_init=init, precision="highest", name=name)
