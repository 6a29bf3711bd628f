"""Ridge regression by gradient steps: what the closed form gives, without it."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from star_jax.embeddings.transforms.descent import DescentConfig, Rows, descend
from star_jax.embeddings.transforms.frames import Frame
from star_jax.embeddings.transforms.maps import Linear
from star_jax.shapes import PyTree


def fit_sgd(
    inside: Frame, rows: Rows, stopping: Rows, ridge: float, config: DescentConfig
) -> tuple[Linear, int]:
    """The map, and the step it was best at.

    It tends to the one of `solve_ridge` where enough steps are allowed; what whitens makes the
    way short.

    Args:
      inside: The frame that both kinds of rows are given in.
      rows: Fitted on.
      stopping: Choose the step.
      ridge: As in `solve_ridge`.
      config: Of the descent.
    """
    strength = ridge * inside.second.x_scale
    start = {"matrix": np.zeros(inside.second.xy.shape, np.float32)}

    def penalty(params: PyTree) -> Float[Array, ""]:
        return strength * jnp.sum(params["matrix"] ** 2)

    best = descend(_loss, penalty, start, rows, stopping, config)
    return inside.linear(best.params["matrix"]), best.step


def _loss(params: PyTree, x: Float[Array, "N I"], y: Float[Array, "N O"]) -> Float[Array, ""]:
    return jnp.mean(jnp.sum((x @ params["matrix"] - y) ** 2, axis=1))
