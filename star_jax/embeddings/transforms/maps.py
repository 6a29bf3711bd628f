"""Maps of vectors: none at all, linear, and linear with a small network beside it.

Vectors are rows, so that the paper's `B z` (Eq. 8) is `z @ matrix` with `matrix` its transpose.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Float32

from star_jax.config import InputError

_LEAST = np.finfo(np.float32).tiny
_UNIT = 1e-3  # From 1, of the lengths of vectors that were normalised, in bfloat16 at the worst.


class Identity(NamedTuple):
    """No map: vectors of one width stay as they are."""

    size: int

    def widths(self) -> tuple[int, int]:
        """Of what goes in and what comes out."""
        return self.size, self.size

    def apply(self, vectors: Float32[np.ndarray, "N I"]) -> Float32[np.ndarray, "N I"]:
        """The same rows."""
        return vectors

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored beside the kind and the widths."""
        return {}


class Linear(NamedTuple):
    """`x @ factors[0] @ ... + bias`; two factors are a map of low rank."""

    factors: tuple[Float32[np.ndarray, "..."], ...]
    bias: Float32[np.ndarray, " O"] | None

    def widths(self) -> tuple[int, int]:
        """Of what goes in and what comes out."""
        return len(self.factors[0]), self.factors[-1].shape[1]

    def apply(self, vectors: Float32[np.ndarray, "N I"]) -> Float32[np.ndarray, "N O"]:
        """Maps every row."""
        for factor in self.factors:
            vectors = vectors @ factor
        return vectors if self.bias is None else vectors + self.bias[None, :]

    def matrix(self) -> Float[np.ndarray, "I O"]:
        """The product of the factors, in float64."""
        product = self.factors[0].astype(np.float64)
        for factor in self.factors[1:]:
            product = product @ factor
        return product

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored."""
        found = {f"factor{i}": factor for i, factor in enumerate(self.factors)}
        return found if self.bias is None else found | {"bias": self.bias}


class Residual(NamedTuple):
    """`linear(x) + gelu(x @ hidden + hidden_bias) @ output`, with gelu by its tanh formula."""

    linear: Linear
    hidden: Float32[np.ndarray, "I H"]
    hidden_bias: Float32[np.ndarray, " H"]
    output: Float32[np.ndarray, "H O"]

    def widths(self) -> tuple[int, int]:
        """Of what goes in and what comes out."""
        return self.linear.widths()

    def apply(self, vectors: Float32[np.ndarray, "N I"]) -> Float32[np.ndarray, "N O"]:
        """Maps every row."""
        inner = gelu(vectors @ self.hidden + self.hidden_bias[None, :])
        return self.linear.apply(vectors) + inner @ self.output

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored."""
        own = {name: getattr(self, name) for name in ("hidden", "hidden_bias", "output")}
        return self.linear.arrays() | own


Map: TypeAlias = Identity | Linear | Residual


def linear(matrix: Float[np.ndarray, "I O"], bias: Float[np.ndarray, " O"] | None = None) -> Linear:
    """A linear map as it is stored: in float32."""
    own = None if bias is None else bias.astype(np.float32)
    return Linear((np.ascontiguousarray(matrix, np.float32),), own)


def joined(first: Map, second: Map) -> Map | None:
    """One map that does both, one after the other; None where there is none of these kinds."""
    if isinstance(first, Identity):
        return second
    if isinstance(second, Identity):
        return first
    if isinstance(first, Residual) or isinstance(second, Residual):
        return None
    matrix = second.matrix()
    moved = None if first.bias is None else first.bias @ matrix
    if second.bias is not None:
        moved = second.bias if moved is None else moved + second.bias
    return linear(first.matrix() @ matrix, moved)


def keeps_scale(own: Map) -> bool:
    """Whether c times a vector is mapped to c times its image, for every c > 0."""
    return isinstance(own, Identity) or (isinstance(own, Linear) and own.bias is None)


def normalised(vectors: Float32[np.ndarray, "N O"]) -> Float32[np.ndarray, "N O"]:
    """Rows of length 1; rows of zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(length, _LEAST)


class Lengths(NamedTuple):
    """Of the shortest of some vectors that is not zero, and of the longest."""

    least: float
    most: float

    def merge(self, other: "Lengths") -> "Lengths":
        """Of both."""
        return Lengths(min(self.least, other.least), max(self.most, other.most))

    def are_one(self) -> bool:
        """Whether the vectors were normalised: all have length 1, zeros apart."""
        return max(abs(self.least - 1), abs(self.most - 1)) <= _UNIT


def lengths_of(vectors: Float[np.ndarray, "N E"]) -> Lengths:
    """Of any number of vectors, none too."""
    length = np.linalg.norm(vectors, axis=1)
    least = length.min(where=length > 0, initial=np.inf)
    return Lengths(float(least), float(length.max(initial=0.0)))


def gelu(x: Float32[np.ndarray, "N H"]) -> Float32[np.ndarray, "N H"]:
    """As `jax.nn.gelu` with `approximate=True`."""
    inner = np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x**3)
    return np.float32(0.5) * x * (1 + np.tanh(inner))


def from_arrays(
    kind: str, widths: tuple[int, int], arrays: Mapping[str, np.ndarray], where: object
) -> Map:
    """A map of what was stored; the inverse of `arrays`.

    Args:
      kind: Name of its class, in lower case.
      widths: Of what goes in and what comes out.
      arrays: By name.
      where: They are, for the message.

    Raises:
      InputError: The arrays are no map of this kind and these widths.
    """
    try:
        if kind == "identity":
            found: Map = Identity(widths[0])
        else:
            own = dict(arrays)
            factors = tuple(own.pop(f"factor{i}") for i in range(_num_factors(own)))
            found = Linear(factors, own.pop("bias", None))
            if kind == "residual":
                found = Residual(found, **{name: own[name] for name in Residual._fields[1:]})
        fits = found.widths() == widths and _fits(found, widths)
    except (KeyError, IndexError) as error:
        raise InputError(
            f"{where} holds no {kind} map: {', '.join(arrays) or 'nothing'}"
        ) from error
    if not fits:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise InputError(f"{where} holds {shapes}, needed a {kind} map of {widths}")
    return found


def _num_factors(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(name.startswith("factor") for name in arrays)


def _fits(own: Map, widths: tuple[int, int]) -> bool:
    """Whether the inner widths agree too."""
    if isinstance(own, Identity):
        return True
    plain = own.linear if isinstance(own, Residual) else own
    pairs = zip(plain.factors[:-1], plain.factors[1:], strict=True)
    fits = all(a.shape[1] == len(b) for a, b in pairs)
    fits &= plain.bias is None or plain.bias.shape == (widths[1],)
    if isinstance(own, Residual):
        size = len(own.hidden_bias)
        fits &= own.hidden.shape == (widths[0], size) and own.output.shape == (size, widths[1])
    return bool(fits)
