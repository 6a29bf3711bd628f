"""Reduced-rank regression: the best map of a given rank, in closed form."""

import numpy as np
from jaxtyping import Float64

from star_jax.embeddings.transforms.normal_equations import Second, solve_ridge


def solve_lowrank(
    second: Second, ridge: float, rank: int
) -> tuple[Float64[np.ndarray, "I R"], Float64[np.ndarray, "R O"]]:
    """Two factors of the matrix that `solve_ridge` would give, if only rank R were allowed.

    Among all matrices W of that rank their product has the least mean of |x W - y|^2 plus
    ridge * x_scale * |W|^2: the full solution, projected on the first directions of what it fits
    (Izenman 1975; the ridge is the same regression with rows of x added).
    """
    full = solve_ridge(second, ridge)
    fitted = second.xy.T @ full
    _, vectors = np.linalg.eigh((fitted + fitted.T) / 2)
    first = vectors[:, ::-1][:, :rank]
    return full @ first, first.T
