"""The rotation that brings a new version nearest to an old one: all dot products stay."""

import numpy as np
from jaxtyping import Float64

from star_jax.embeddings.transforms.normal_equations import Second


def solve_procrustes(second: Second) -> Float64[np.ndarray, "I O"]:
    """The matrix R with orthonormal rows or columns that has the least mean of |x R - y|^2.

    The narrower side is filled up with zeros: where the new version is wider, R is the first
    columns of the best rotation. Schoenemann 1966: the singular vectors of `xy`.
    """
    left, _, right = np.linalg.svd(second.xy, full_matrices=False)
    return left @ right
