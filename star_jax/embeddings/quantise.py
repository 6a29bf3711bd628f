"""Narrow vectors: half floats, and int8 and binary by the conventions of sentence-transformers.

Its `quantize_embeddings` cuts the range of each dimension into 255 steps and truncates towards
zero; binary keeps the sign of each dimension, eight to a byte, the first one highest. What lies
beyond the ranges is held at their ends here (there it wraps around).
"""

from typing import Literal, get_args

import ml_dtypes
import numpy as np
from jaxtyping import Float, Float32, Shaped

from star_jax.config import InputError

Precision = Literal["float32", "float16", "bfloat16", "int8", "uint8", "binary", "ubinary"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
RANGED: tuple[Precision, ...] = ("int8", "uint8")
"""Those that need the ranges of the dimensions."""

READABLE: tuple[Precision, ...] = ("float32", "float16", "bfloat16", *RANGED)
"""Those that `dequantise` can read, the best first."""

_STEPS = 255
_DTYPES: dict[Precision, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int8": np.int8,
    "uint8": np.uint8,
    "binary": np.int8,
    "ubinary": np.uint8,
}


def measure_ranges(sample: Float[np.ndarray, "N E"]) -> Float32[np.ndarray, "2 E"]:
    """Least and greatest value of each dimension over a calibration sample of one row or more."""
    return np.stack([sample.min(axis=0), sample.max(axis=0)]).astype(np.float32)


def check_ranges(ranges: np.ndarray, size: int, where: object) -> None:
    """Refuses an array that is no ranges of vectors of this size.

    Raises:
      InputError: With what it is.
    """
    if ranges.shape != (2, size) or ranges.dtype != np.float32:
        raise InputError(
            f"{where} has shape {ranges.shape} of {ranges.dtype}, needed (2, {size}) of float32: "
            "least and greatest value of each dimension"
        )
    if not np.isfinite(ranges).all() or (ranges[0] > ranges[1]).any():
        raise InputError(f"{where} has a least value above the greatest, or one that is not finite")


def quantise(
    vectors: Float[np.ndarray, "N E"],
    precision: Precision,
    ranges: Float32[np.ndarray, "2 E"] | None,
) -> Shaped[np.ndarray, "N _"]:
    """Codes of vectors: `num_codes` per row in the dtype of `code_dtype`.

    Args:
      vectors: Any number of rows.
      precision: `float32` gives the vectors back, `float16` and `bfloat16` round them; npy files
        know no bfloat16, so that its codes are its bits as whole numbers.
      ranges: Of `measure_ranges`; needed for int8 and uint8.
    """
    if precision in ("float32", "float16"):
        return vectors.astype(_DTYPES[precision], copy=False)
    if precision == "bfloat16":
        return vectors.astype(ml_dtypes.bfloat16).view(np.uint16)
    if precision in RANGED:
        steps = _steps_of(vectors.astype(np.float32, copy=False), _needed(ranges, precision))
        return (steps - 128 if precision == "int8" else steps).astype(code_dtype(precision))
    bits = np.packbits(vectors > 0, axis=1)
    return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)


def dequantise(
    codes: Shaped[np.ndarray, "N _"],
    precision: Precision,
    ranges: Float32[np.ndarray, "2 E"] | None,
) -> Float32[np.ndarray, "N E"]:
    """The middle of what a code stands for.

    That of int8 or uint8 is within one step of the vector that had been in range.

    Args:
      codes: Of `quantise`.
      precision: One of `READABLE`.
      ranges: As in `quantise`.

    Raises:
      ValueError: The precision keeps no sizes.
    """
    if precision not in READABLE:
        raise ValueError(f"precision {precision} is not one of {READABLE}: it keeps no sizes")
    if precision in ("float32", "float16"):
        return codes.astype(np.float32, copy=False)
    if precision == "bfloat16":  # The upper half of a float32.
        return (codes.astype(np.uint32) << 16).view(np.float32)
    ranges = _needed(ranges, precision)
    code = codes.astype(np.float32)
    if precision == "int8":  # Truncation towards zero: zero stands for two steps.
        step = np.clip(code + 0.5 * np.sign(code), -128, 127) + 128
    else:
        step = np.minimum(code + 0.5, _STEPS)
    start, size = ranges[:1], (ranges[1:] - ranges[:1]) / _STEPS
    return (start + step * size).astype(np.float32)


def num_codes(precision: Precision, size: int) -> int:
    """Codes of a vector of this size."""
    return -(-size // 8) if precision in ("binary", "ubinary") else size


def code_dtype(precision: Precision) -> np.dtype:
    """What a code is stored as."""
    return np.dtype(_DTYPES[precision])


def _steps_of(
    vectors: Float32[np.ndarray, "N E"], ranges: Float32[np.ndarray, "2 E"]
) -> Float32[np.ndarray, "N E"]:
    """Where values lie in their ranges, from 0 to 255."""
    size = (ranges[1:] - ranges[:1]) / _STEPS
    size = np.where(size > 0, size, np.float32(1))  # One value alone is the range's start.
    return np.clip((vectors - ranges[:1]) / size, 0, _STEPS)


def _needed(
    ranges: Float32[np.ndarray, "2 E"] | None, precision: Precision
) -> Float32[np.ndarray, "2 E"]:
    if ranges is None:
        raise ValueError(f"precision {precision} needs the ranges of the dimensions")
    return ranges
