"""What every way to pick is asked for."""

from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
    """How many edges to draw from a row, and where its random numbers begin."""

    fanout: int
    replace: bool
    start: np.uint64
