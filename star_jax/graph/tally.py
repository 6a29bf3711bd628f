"""What is counted of edges while they are written."""

from typing import no_type_check

import numpy as np
from jaxtyping import Float, Int

from star_jax.graph.samplers.compiled import kernel
from star_jax.graph.store import (
    HAS_OWN_TIME,
    HAS_REMOVAL,
    HAS_TIME,
    HAS_WEIGHT,
    NOT_REMOVED,
    SPLIT_BITS,
    TIMED_BIT,
)
from star_jax.shapes import NO_TIME

TALLIED = ("receiver", "relation", "time", "removed", "weight", "flags")
"""The columns that `tally` looks at, in its order."""

_NO_TIME = np.int64(NO_TIME)


@kernel
@no_type_check
def tally(
    receiver: Int[np.ndarray, " M"],
    relation: Int[np.ndarray, " M"],
    time: Int[np.ndarray, " M"],
    removed: Int[np.ndarray, " M"],
    weight: Float[np.ndarray, " M"],
    flags: Int[np.ndarray, " M"],
    degrees: Int[np.ndarray, "N r"],
    traits: Int[np.ndarray, " r"],
) -> None:
    """Adds edges to the degrees, and what they have to the traits of their relations.

    Args:
      receiver: Of every edge, like what follows.
      relation: Column of `degrees`.
      time: From which it counts.
      removed: When it was removed.
      weight: Its weight.
      flags: Its split, and whether it has a time of its own.
      degrees: Edges by receiver and relation.
      traits: By relation, in the bits of `store.GraphMeta.traits`.
    """
    for i in range(receiver.size):
        degrees[receiver[i], relation[i]] += 1
        has = 1 << (flags[i] & SPLIT_BITS)
        if time[i] != _NO_TIME:
            has |= HAS_TIME
        if flags[i] & TIMED_BIT:
            has |= HAS_OWN_TIME
        if removed[i] != NOT_REMOVED:
            has |= HAS_REMOVAL
        if weight[i] != 1.0:
            has |= HAS_WEIGHT
        traits[relation[i]] |= has
