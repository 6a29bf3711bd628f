"""Every visible edge is equally likely."""

from typing import no_type_check

import numpy as np
from jaxtyping import Int

from star_jax.graph.samplers.compiled import kernel
from star_jax.graph.samplers.draws import below
from star_jax.graph.samplers.picks.draw import Draw, Scratch, is_picked
from star_jax.graph.samplers.visibility import Edges, Row, Rule, visible

SMALL = 4  # Rows up to this many times the fanout are enumerated, longer ones tried at random.


@kernel
@no_type_check
def _enumerate(
    edges: Edges,
    rule: Rule,
    row: Row,
    draw: Draw,
    slot: int,
    listed: Int[np.ndarray, " n"],
    picks: Int[np.ndarray, " k"],
) -> int:
    """Lists what is visible in `listed`, then picks from it; exact, linear in the row."""
    fanout = draw.fanout
    n = 0
    for position in range(row.begin, row.end):
        if visible(edges, rule, row, position):
            listed[n] = position
            n += 1
    if n == 0:
        return 0
    if draw.replace:
        for i in range(fanout):
            j, slot = below(draw.start, slot, n)
            picks[i] = listed[j]
        return fanout
    if n > fanout:  # The first steps of a Fisher-Yates shuffle.
        for i in range(fanout):
            j, slot = below(draw.start, slot, n - i)
            listed[i], listed[i + j] = listed[i + j], listed[i]
        n = fanout
    for i in range(n):
        picks[i] = listed[i]
    return n


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
    """Puts uniform positions among the visible edges of a row into `picks`; returns how many.

    Long rows are tried at random: what is invisible or picked already is refused, which leaves
    every set of visible edges equally likely. After too many refusals the tries are thrown away
    and the row is enumerated; that event does not depend on which visible edges were met.
    """
    n, fanout = row.end - row.begin, draw.fanout
    if n <= SMALL * fanout:
        return _enumerate(edges, rule, row, draw, 0, scratch.listed, picks)
    slot, found = 0, 0
    for _ in range(8 * fanout + 64):
        j, slot = below(draw.start, slot, n)
        position = row.begin + j
        if not draw.replace and is_picked(picks, found, position):
            continue
        if visible(edges, rule, row, position):
            picks[found] = position
            found += 1
            if found == fanout:
                return found
    return _enumerate(edges, rule, row, draw, slot, scratch.listed, picks)
