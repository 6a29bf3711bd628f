"""Linear maps from the moments of pairs: by ridge regression, rotation, or at low rank."""

from typing import Literal

import numpy as np

from star_jax.embeddings.transforms.lowrank import solve_lowrank
from star_jax.embeddings.transforms.maps import Linear
from star_jax.embeddings.transforms.normal_equations import Moments, solve_ridge, whitened
from star_jax.embeddings.transforms.procrustes import solve_procrustes

ClosedForm = Literal["ridge", "procrustes", "lowrank"]


def fit_linear(
    moments: Moments, mode: ClosedForm, *, ridge: float, rank: int, bias: bool, whiten: bool
) -> Linear:
    """The map that the mode says is best.

    Args:
      moments: Of one pair or more.
      mode: Whose `solve_...` defines it.
      ridge: Of `ridge` and `lowrank`.
      rank: Of `lowrank`.
      bias: Maps deviations from the means; else, as in the paper, the vectors themselves.
      whiten: Maps both versions whitened, each by its own moments, and folds that in.

    Raises:
      InputError: The pairs do not determine it, or are not finite.
    """
    second = moments.second(centred=bias)
    means = second.x_mean, second.y_mean
    white = None
    if whiten:
        second, *white = whitened(second)
    if mode == "lowrank":
        factors = list(solve_lowrank(second, ridge, rank))
    elif mode == "procrustes":
        factors = [solve_procrustes(second)]
    else:
        factors = [solve_ridge(second, ridge)]
    if white:
        factors[0] = white[0].white @ factors[0]
        factors[-1] = factors[-1] @ white[1].colour
    moved = means[0]
    for factor in factors:
        moved = moved @ factor
    stored = tuple(np.ascontiguousarray(factor, np.float32) for factor in factors)
    return Linear(stored, (means[1] - moved).astype(np.float32) if bias else None)
