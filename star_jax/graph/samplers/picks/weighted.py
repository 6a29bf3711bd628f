"""In proportion to the weights; without replacement, to those of what is left.

Weights are drawn by their running sums and not by alias tables, which hold for a whole row: an
example sees the part of it before its own time, whose sums no later edge changes.

Engines on devices have no float64. So what is drawn is an integer of at most 31 bits, and sums are
cut to as many bits of the largest: exactly in float64 here, and in integers there.

- A row that is tried: an edge's chance is off by less than 2^-29; by less than 2^-19 where older
  edges, which the example does not see, have most of the sum. Where it might be more, the row is
  enumerated.
- A row of n edges that is enumerated: by less than 2^-29 + n 2^-30. Weights below 2^-31 of the
  largest that is left count as 0, until that one is picked.
"""

import math
from typing import no_type_check

import numpy as np
from jaxtyping import Int

from star_jax.graph.samplers.compiled import kernel
from star_jax.graph.samplers.draws import below
from star_jax.graph.samplers.picks import uniform
from star_jax.graph.samplers.picks.draw import Draw, Scratch, is_picked
from star_jax.graph.samplers.search import first_at_least
from star_jax.graph.samplers.visibility import Edges, Row, Rule, visible

BITS = 31  # Of the sums that are drawn from.
LEAST_SUM = 1 << 20  # A row whose cut sum is below is enumerated.
LEAST_EXPONENT = -125  # Of the smallest normal float32; smaller weights are cut like it.
_pick_uniform = uniform.pick


@kernel
@no_type_check
def _list(
    edges: Edges,
    rule: Rule,
    row: Row,
    draw: Draw,
    found: int,
    scratch: Scratch,
    picks: Int[np.ndarray, " k"],
) -> int:
    """Lists what may still be picked after `found` picks; returns how many there are."""
    n = 0
    for position in range(row.begin, row.end):
        weight = edges.weight[position]
        if weight <= 0.0 or (not draw.replace and is_picked(picks, found, position)):
            continue
        if visible(edges, rule, row, position):
            scratch.listed[n], scratch.weight[n] = position, weight
            n += 1
    return n


@kernel
@no_type_check
def _one_of(scratch: Scratch, n: int, start: np.uint64, slot: int) -> tuple[int, int]:
    """Which of `n` that are listed is next, or -1 if no weight is left; and the next slot.

    Weights are cut to 31 bits of the largest that is left, and their exact sum to 31 bits again.
    """
    largest = 0.0
    for i in range(n):
        largest = max(largest, scratch.weight[i])
    if largest == 0.0:
        return -1, slot
    scale = math.ldexp(1.0, BITS - max(math.frexp(largest)[1], LEAST_EXPONENT))
    total = np.int64(0)
    for i in range(n):
        total += np.int64(scratch.weight[i] * scale)
    shift = 0
    while total >> shift >= 1 << BITS:
        shift += 1
    drawn, slot = below(start, slot, total >> shift)
    left, i = (drawn + 1) << shift, 0
    while True:
        left -= np.int64(scratch.weight[i] * scale)
        if left <= 0:
            return i, slot
        i += 1


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
    """Goes on after `found` picks with all that is left, in time linear in row times fanout."""
    n = _list(edges, rule, row, draw, found, scratch, picks)
    while found < draw.fanout:
        i, slot = _one_of(scratch, n, draw.start, slot)
        if i < 0:
            break
        picks[found] = scratch.listed[i]
        found += 1
        if not draw.replace:
            scratch.weight[i] = 0.0
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

    Weights of long rows are tried at random, and what is invisible or picked already is refused.
    How often does not change what comes next, so that picks made before too many refusals stay.
    """
    if edges.cumulative.size == 0:  # All weights are equal.
        return _pick_uniform(edges, rule, row, draw, scratch, picks)
    slot, found = 0, 0
    if row.end - row.begin > uniform.SMALL * draw.fanout:
        sums = edges.cumulative
        exponent = math.frexp(sums[row.end - 1])[1]
        scale = math.ldexp(1.0, BITS - exponent)
        before = np.int64(sums[row.begin - 1] * scale) if row.begin > row.first else np.int64(0)
        total = np.int64(sums[row.end - 1] * scale) - before
        for _ in range(8 * draw.fanout + 64 if total >= LEAST_SUM else 0):
            drawn, slot = below(draw.start, slot, total)
            bound = math.ldexp(np.float64(before + drawn + 1), exponent - BITS)
            position = first_at_least(sums, row.begin, row.end, bound)
            if not draw.replace and is_picked(picks, found, position):
                continue
            if visible(edges, rule, row, position):
                picks[found] = position
                found += 1
                if found == draw.fanout:
                    return found
    return _enumerate(edges, rule, row, draw, slot, found, scratch, picks)
