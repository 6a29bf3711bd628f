"""In proportion to the weights; without replacement, to those of what is left.

Weights are drawn by their running sums and not by alias tables, which hold for a whole row: an
example sees the part of it before its own time, whose sums no later edge changes.
"""

from typing import no_type_check

import numpy as np
from jaxtyping import Int

from star_jax.graph.samplers.compiled import kernel
from star_jax.graph.samplers.draws import fraction
from star_jax.graph.samplers.picks import uniform
from star_jax.graph.samplers.picks.draw import Draw, Scratch, is_picked
from star_jax.graph.samplers.search import first_above
from star_jax.graph.samplers.visibility import Edges, Row, Rule, visible

_pick_uniform = uniform.pick


@kernel
@no_type_check
def _enumerate(
    edges: Edges,
    rule: Rule,
    row: Row,
    draw: Draw,
    slot: int,
    found: int,
    scratch: Scratch,
    picks: Int[np.ndarray, " k"],
) -> int:
    """Goes on after `found` picks with all that is left; exact, linear in row times fanout."""
    listed, weights, n = scratch.listed, scratch.weight, 0
    for position in range(row.begin, row.end):
        weight = edges.weight[position]
        if weight <= 0.0 or (not draw.replace and is_picked(picks, found, position)):
            continue
        if visible(edges, rule, row, position):
            listed[n], weights[n] = position, weight
            n += 1
    while found < draw.fanout and n > 0:
        part, slot = fraction(draw.start, slot)
        total = 0.0
        for i in range(n):
            total += weights[i]
        left, i = part * total, 0
        while i < n - 1 and left >= weights[i]:
            left -= weights[i]
            i += 1
        picks[found] = listed[i]
        found += 1
        if not draw.replace:
            n -= 1
            listed[i], weights[i] = listed[n], weights[n]
    return found


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
    """Positions drawn by weight; an edge of weight 0 never is.

    Weights are tried at random, and what is invisible or picked already is refused. How often does
    not change what comes next, so that picks made before too many refusals stay.
    """
    if edges.cumulative.size == 0:  # All weights are equal.
        return _pick_uniform(edges, rule, row, draw, scratch, picks)
    slot, found = 0, 0
    if draw.replace or row.end - row.begin > draw.fanout:
        before = edges.cumulative[row.begin - 1] if row.begin > row.first else 0.0
        total = edges.cumulative[row.end - 1] - before if row.end > row.begin else 0.0
        for _ in range(8 * draw.fanout + 64 if total > 0.0 else 0):
            part, slot = fraction(draw.start, slot)
            position = first_above(edges.cumulative, row.begin, row.end, before + part * total)
            if position == row.end or edges.weight[position] <= 0.0:
                continue  # Rounding.
            if not draw.replace and is_picked(picks, found, position):
                continue
            if visible(edges, rule, row, position):
                picks[found] = position
                found += 1
                if found == draw.fanout:
                    return found
    return _enumerate(edges, rule, row, draw, slot, found, scratch, picks)
