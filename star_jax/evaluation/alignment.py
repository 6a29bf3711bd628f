"""How near the vectors of one version are to those of another, row by row."""

import numpy as np
from jaxtyping import Float

_LEAST = 1e-30


class Agreement:
    """Sums over pairs of vectors that should be equal."""

    def __init__(self, size: int) -> None:
        """Of no pairs, of vectors of this width."""
        self.count = 0
        self._distance = self._cosine = self._squared = self._square = 0.0
        self._sum = np.zeros(size)

    def add(self, got: Float[np.ndarray, "N E"], old: Float[np.ndarray, "N E"]) -> None:
        """Counts a block of pairs in, in float64."""
        got, old = got.astype(np.float64), old.astype(np.float64)
        off = np.square(got - old).sum(axis=1)
        lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(old, axis=1)
        self.count += len(got)
        self._distance += float(np.sqrt(off).sum())
        self._cosine += float(((got * old).sum(axis=1) / np.maximum(lengths, _LEAST)).sum())
        self._squared += float(off.sum())
        self._square += float(np.square(old).sum())
        self._sum += old.sum(axis=0)

    @property
    def error(self) -> float:
        """Mean 2-norm of the differences, the alignment error of Hu et al. (2022)."""
        return self._distance / self.count

    @property
    def relative_error(self) -> float:
        """Root of the share of the old vectors' variance that is left unexplained.

        0: equal; 1: no closer than the mean of the old vectors; no unit.

        Raises:
          ValueError: All old vectors are equal.
        """
        if not self._spread > 0:
            raise ValueError(f"all {self.count} old vectors are equal, needed different ones")
        return (self._squared / self._spread) ** 0.5

    def figures(self) -> dict[str, float] | None:
        """What a map is reported by; None where there are no pairs.

        Returns:
          `alignment_error`: as `error`. `cosine`: mean. `r2`: one minus the squared differences
          over those of the old vectors to their mean, all dimensions together.
        """
        if not self.count:
            return None
        return {
            "alignment_error": self.error,
            "cosine": self._cosine / self.count,
            "r2": 1 - self._squared / max(self._spread, _LEAST),
        }

    @property
    def _spread(self) -> float:
        """Squared differences of the old vectors to their mean."""
        return self._square - float(np.square(self._sum).sum()) / self.count
