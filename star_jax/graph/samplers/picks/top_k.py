"""The edges of largest weight; of equal ones the latest."""

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
    """Positions in falling order of their weights; reads the whole row."""
    found = 0
    for position in range(row.end - 1, row.begin - 1, -1):
        weight = edges.weight[position]
        is_full = found == draw.fanout
        if is_full and weight <= edges.weight[picks[found - 1]]:
            continue
        if not visible(edges, rule, row, position):
            continue
        i = found - 1 if is_full else found
        while i > 0 and edges.weight[picks[i - 1]] < weight:
            picks[i] = picks[i - 1]
            i -= 1
        picks[i] = position
        found = min(found + 1, draw.fanout)
    return found
