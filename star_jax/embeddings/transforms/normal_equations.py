"""Second moments of pairs, added up block by block, and the ridge regression they determine.

All closed forms read these moments and nothing else of the pairs: one pass, in any order, by any
number of processes whose moments are then added; memory is that of one block and (1 + I + O)^2
float64. Rows x are of the new version, rows y of the same entities in the old one.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from scipy import linalg

from star_jax.config import InputError
from star_jax.embeddings.transforms.maps import Lengths, lengths_of

_FLAT = 1e-12  # Of the greatest variance: a direction with less holds rounding alone.


class Moments:
    """Sums over pairs of the products of [1, x, y] with itself, in float64.

    Attributes:
      inputs: Width of x.
      gram: The sums.
      lengths: Of the y.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        """Of no pairs."""
        self.inputs = inputs
        self.gram: Float64[np.ndarray, "F F"] = np.zeros((1 + inputs + outputs,) * 2)
        self.lengths = Lengths(np.inf, 0.0)

    @property
    def count(self) -> int:
        """Pairs."""
        return int(self.gram[0, 0])

    def add(self, x: Float[np.ndarray, "N I"], y: Float[np.ndarray, "N O"]) -> None:
        """Counts a block of pairs in."""
        if not len(x):
            return
        rows = np.empty((len(x), len(self.gram)))
        rows[:, 0], rows[:, 1 : 1 + self.inputs], rows[:, 1 + self.inputs :] = 1, x, y
        self.gram += rows.T @ rows  # BLAS takes half of the work where both are the same.
        self.lengths = self.lengths.merge(lengths_of(rows[:, 1 + self.inputs :]))

    def merge(self, other: "Moments") -> None:
        """Counts in what others counted.

        Raises:
          ValueError: They are of other widths.
        """
        if (self.inputs, len(self.gram)) != (other.inputs, len(other.gram)):
            raise ValueError(
                f"moments of {other.inputs} inputs and {len(other.gram) - 1} in all, "
                f"needed {self.inputs} and {len(self.gram) - 1}"
            )
        self.gram += other.gram
        self.lengths = self.lengths.merge(other.lengths)

    def write(self, path: Path) -> None:
        """Stores them for `read`."""
        np.savez(path, inputs=self.inputs, gram=self.gram, lengths=self.lengths)

    @classmethod
    def read(cls, path: Path) -> "Moments":
        """What `write` stored."""
        with np.load(path) as stored:
            inputs = int(stored["inputs"])
            moments = cls(inputs, len(stored["gram"]) - 1 - inputs)
            moments.gram = stored["gram"]
            moments.lengths = Lengths(*stored["lengths"].tolist())
        return moments

    def check_finite(self, name: str) -> None:
        """Refuses what would spoil every map.

        Raises:
          InputError: Some vector of `name` was not finite.
        """
        if not np.isfinite(self.gram).all():
            raise InputError(f"{name}: a vector of the pairs is not finite; make both anew")

    def second(self, *, centred: bool) -> "Second":
        """Mean products of finite vectors, about the means or about zero."""
        mean = self.gram / max(self.count, 1)
        shift = mean[0] if centred else np.zeros(len(mean))
        if centred:
            mean = mean - np.outer(shift, shift)
        x, y = slice(1, 1 + self.inputs), slice(1 + self.inputs, None)
        return Second(mean[x, x], mean[x, y], mean[y, y], shift[x], shift[y])


class Second(NamedTuple):
    """Mean products of x and y about `x_mean` and `y_mean`."""

    xx: Float64[np.ndarray, "I I"]
    xy: Float64[np.ndarray, "I O"]
    yy: Float64[np.ndarray, "O O"]
    x_mean: Float64[np.ndarray, " I"]
    y_mean: Float64[np.ndarray, " O"]

    @property
    def x_scale(self) -> float:
        """Mean square of one dimension of x."""
        return float(np.trace(self.xx)) / len(self.xx)


class Whitening(NamedTuple):
    """To uncorrelated dimensions of mean square 1, and back."""

    white: Float64[np.ndarray, "E E"]
    colour: Float64[np.ndarray, "E E"]


def whitening(second: Float64[np.ndarray, "E E"]) -> Whitening:
    """The symmetric root of mean products, and its inverse; zero where nothing varies."""
    values, vectors = np.linalg.eigh(second)
    root = np.sqrt(np.maximum(values, 0))
    held = values > _FLAT * values[-1]
    inverse = np.divide(1, root, out=np.zeros_like(root), where=held)
    return Whitening((vectors * inverse) @ vectors.T, (vectors * (root * held)) @ vectors.T)


def whitened(second: Second) -> tuple[Second, Whitening, Whitening]:
    """The moments of both sides, each whitened by its own, and how."""
    x, y = whitening(second.xx), whitening(second.yy)
    white = second._replace(
        xx=x.white @ second.xx @ x.white,
        xy=x.white @ second.xy @ y.white,
        yy=y.white @ second.yy @ y.white,
    )
    return white, x, y


def regularised(second: Second, ridge: float) -> Float64[np.ndarray, "I I"]:
    """`xx` with `ridge` times its mean diagonal added to its diagonal."""
    return second.xx + ridge * second.x_scale * np.eye(len(second.xx))


def solve_ridge(second: Second, ridge: float) -> Float64[np.ndarray, "I O"]:
    """The matrix W with the least mean of |x W - y|^2 plus ridge * x_scale * |W|^2.

    So a direction in which x has its mean variance is shrunk by the factor 1 / (1 + ridge),
    whatever the scale of x and the number of pairs.

    Raises:
      InputError: The pairs do not determine it.
    """
    try:
        factor = linalg.cho_factor(regularised(second, ridge), lower=True)
        solution = linalg.cho_solve(factor, second.xy)
    except linalg.LinAlgError as error:
        raise InputError(
            f"ridge {ridge}: the pairs do not span all {len(second.xx)} dimensions of the new "
            "version, needed a greater one such as 1e-6"
        ) from error
    return solution
