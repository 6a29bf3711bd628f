"""How near mapped vectors are to the old version's."""

import numpy as np
from jaxtyping import Float

_LEAST = 1e-30


class Agreement:
    """Sums over pairs of vectors that should be equal; `merge` adds those of other pairs."""

    def __init__(self, size: int) -> None:
        """Of no pairs, of vectors of this width."""
        self.count = 0
        self._distance = self._cosine = self._squared = self._square = 0.0
        self._sum = np.zeros(size)

    def add(self, got: Float[np.ndarray, "N E"], old: Float[np.ndarray, "N E"]) -> None:
        """Counts a block of pairs in."""
        got, old = got.astype(np.float64), old.astype(np.float64)
        off = np.square(got - old).sum(axis=1)
        lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(old, axis=1)
        self.count += len(got)
        self._distance += float(np.sqrt(off).sum())
        self._cosine += float(((got * old).sum(axis=1) / np.maximum(lengths, _LEAST)).sum())
        self._squared += float(off.sum())
        self._square += float(np.square(old).sum())
        self._sum += old.sum(axis=0)

    def merge(self, other: "Agreement") -> None:
        """Counts in what others counted."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def figures(self) -> dict[str, float] | None:
        """What is reported; None where there are no pairs.

        Returns:
          `alignment_error`: mean 2-norm of the difference. `cosine`: mean. `r2`: one minus the
          squared differences over those of the old vectors to their mean, all dimensions together.
        """
        if not self.count:
            return None
        spread = self._square - float(np.square(self._sum).sum()) / self.count
        return {
            "alignment_error": self._distance / self.count,
            "cosine": self._cosine / self.count,
            "r2": 1 - self._squared / max(spread, _LEAST),
        }
