"""How many edges of a node are visible, whatever their time."""

from typing import no_type_check

import numpy as np
from jaxtyping import Int

from star_jax.graph.samplers.compiled import array_kernel


@array_kernel
@no_type_check
def visible_degrees(
    bounds: Int[np.ndarray, "N r_plus_1"],
    flags: Int[np.ndarray, " M"],
    columns: Int[np.ndarray, " r"],
    splits: int,
    nodes: Int[np.ndarray, " S"],
) -> Int[np.ndarray, "S r"]:
    """Edges of the visible splits, per node and relation."""
    degrees = np.zeros((nodes.size, columns.size), np.int64)
    for i in range(nodes.size):
        for j in range(columns.size):
            begin, end = bounds[nodes[i], columns[j]], bounds[nodes[i], columns[j] + 1]
            for position in range(begin, end):
                degrees[i, j] += (splits >> (flags[position] & 3)) & 1
    return degrees
