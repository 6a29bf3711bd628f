"""What every way to pick is asked for, and what it works in."""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Int

from star_jax.graph.samplers.compiled import kernel


class Draw(NamedTuple):
    """How many edges to draw from a row, and where its random numbers begin."""

    fanout: int
    replace: bool
    start: np.uint64


class Scratch(NamedTuple):
    """Memory with room for the longest row; what is not written takes none."""

    listed: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, longest: int) -> "Scratch":
        """For rows of at most so many edges."""
        return cls(np.empty(longest, np.int64), np.empty(longest, np.float64))


@kernel
@no_type_check
def is_picked(picks: Int[np.ndarray, " k"], found: int, position: int) -> bool:
    """Whether a position is among the first `found`; looks at all, some at a time."""
    result = False
    for i in range(found):
        result |= picks[i] == position
    return result
