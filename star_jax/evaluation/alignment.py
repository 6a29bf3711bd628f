"""How far the vectors of one version lie from those of another, row by row."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64


class Alignment(NamedTuple):
    """Sums over rows; those of several blocks add up to those of all."""

    num_rows: int
    norms: float  # Of the differences.
    squares: float  # Of those norms.
    total: Float64[np.ndarray, " E"]  # Of the old rows.
    old_squares: float  # Of the norms of the old rows.

    def __add__(self, other: "Alignment") -> "Alignment":  # pyright: ignore[reportIncompatibleMethodOverride] # a sum of sums, not of tuples
        """The sums over the rows of both."""
        return Alignment(
            self.num_rows + other.num_rows,
            self.norms + other.norms,
            self.squares + other.squares,
            self.total + other.total,
            self.old_squares + other.old_squares,
        )

    @property
    def error(self) -> float:
        """Mean 2-norm of the differences, the alignment error of Hu et al. (2022)."""
        return self.norms / self.num_rows

    @property
    def relative_error(self) -> float:
        """Root of the share of the old vectors' variance that the new ones leave unexplained.

        0: equal; 1: no closer than the mean of the old vectors; no unit.

        Raises:
          ValueError: All old rows are equal.
        """
        mean = self.total / self.num_rows
        variance = self.old_squares / self.num_rows - float(mean @ mean)
        if not variance > 0:
            raise ValueError(f"all {self.num_rows} old vectors are equal, needed different ones")
        return (self.squares / self.num_rows / variance) ** 0.5


def alignment(old: Float[np.ndarray, "N E"], new: Float[np.ndarray, "N E"]) -> Alignment:
    """Compares rows of the same nodes, in float64."""
    before = old.astype(np.float64)
    squares = np.square(before - new).sum(axis=1)
    return Alignment(
        num_rows=len(before),
        norms=float(np.sqrt(squares).sum()),
        squares=float(squares.sum()),
        total=before.sum(axis=0),
        old_squares=float(np.square(before).sum()),
    )
