"""The letters of array shapes, the aliases built on them, and checks at the host's border.

B pairs, L tokens, D model width, H query heads, G key-value heads, K head width, F MLP width,
V vocabulary, E embedding width, N nodes, M edges, S seeds, T tasks; and, where a batch shares
work: U unique texts, R rows of a node table, Q queries, C categorical columns.
"""

from typing import Any, TypeAlias

import numpy as np

NO_TIME: int = int(np.iinfo(np.int64).min)
"""The time of what has none: before everything, hence visible at any time."""

PyTree: TypeAlias = Any
"""Nested containers of arrays; the library that made them knows the exact type."""

_INT32 = np.iinfo(np.int32)


def check_int32(name: str, array: np.ndarray) -> np.ndarray:
    """Returns `array` as int32 after checking its range: JAX truncates int64 without a word.

    Args:
      name: What the array is, for the message.
      array: Integers of any width.

    Raises:
      ValueError: A value does not fit, or the array does not hold integers.
    """
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {array.dtype}, needed integers")
    if array.size:
        low, high = int(array.min()), int(array.max())
        if low < _INT32.min or high > _INT32.max:
            raise ValueError(
                f"{name} ranges over [{low}, {high}], needed to fit int32 "
                f"[{_INT32.min}, {_INT32.max}]"
            )
    return array.astype(np.int32, copy=False)
