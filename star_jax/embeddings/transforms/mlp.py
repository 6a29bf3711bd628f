"""A small network beside the best linear map, fitted to what that leaves over.

As the residual adapter of Drift-Adapter (arXiv 2509.23471), but for the linear part, which is the
closed form and stays: the network begins with an output of zero, so that on the pairs that choose
the stopping point it is never worse than the linear map alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from star_jax.embeddings.transforms.descent import DescentConfig, Rows, descend
from star_jax.embeddings.transforms.frames import Frame
from star_jax.embeddings.transforms.maps import Residual
from star_jax.embeddings.transforms.normal_equations import solve_ridge
from star_jax.shapes import PyTree


def fit_mlp(
    inside: Frame,
    rows: Rows,
    stopping: Rows,
    ridge: float,
    hidden_size: int,
    config: DescentConfig,
) -> tuple[Residual, int]:
    """The map, and the step it was best at; 0: nothing was better than the linear map.

    Args:
      inside: The frame that both kinds of rows are given in.
      rows: Fitted on.
      stopping: Choose the step.
      ridge: Of the linear part, as in `solve_ridge`.
      hidden_size: Width of the network.
      config: Of the descent.
    """
    matrix = solve_ridge(inside.second, ridge)
    inputs, outputs = matrix.shape
    draw = np.random.default_rng(config.seed).normal(size=(inputs, hidden_size))
    start = {
        "hidden": (draw / np.sqrt(inputs)).astype(np.float32),
        "hidden_bias": np.zeros(hidden_size, np.float32),
        "output": np.zeros((hidden_size, outputs), np.float32),
    }
    straight = jnp.asarray(matrix, jnp.float32)

    def loss(params: PyTree, x: Float[Array, "N I"], y: Float[Array, "N O"]) -> Float[Array, ""]:
        inner = jax.nn.gelu(x @ params["hidden"] + params["hidden_bias"][None, :], approximate=True)
        return jnp.mean(jnp.sum((x @ straight + inner @ params["output"] - y) ** 2, axis=1))

    best = descend(loss, _free, start, rows, stopping, config)
    hidden = inside.enter @ best.params["hidden"]
    found = Residual(
        inside.linear(matrix),
        hidden.astype(np.float32),
        (best.params["hidden_bias"] - inside.x_mean @ hidden).astype(np.float32),
        (best.params["output"] @ inside.leave).astype(np.float32),
    )
    return found, best.step


def _free(params: PyTree) -> Float[Array, ""]:
    del params  # The stopping point is what holds it back.
    return jnp.zeros(())
