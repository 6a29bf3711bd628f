"""The latest edges."""

from typing import no_type_check

import numpy as np
from jaxtyping import Int

from star_jax.graph.samplers.compiled import kernel
from star_jax.graph.samplers.picks.draw import Draw, Scratch
from star_jax.graph.samplers.visibility import Edges, Row, Rule, visible


@kernel
@no_type_check
def pick(
    edges: Edges,
    rule: Rule,
    row: Row,
    draw: Draw,
    scratch: Scratch,
    picks: Int[np.ndarray, " k"],
) -> int:
    """Positions from the last one back; edges without a time come first in a row, hence last."""
    found = 0
    for position in range(row.end - 1, row.begin - 1, -1):
        if visible(edges, rule, row, position):
            picks[found] = position
            found += 1
            if found == draw.fanout:
                break
    return found
