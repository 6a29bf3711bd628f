"""Which edges of a node an example may see."""

from typing import NamedTuple, no_type_check

import numpy as np

from star_jax.graph.samplers.compiled import kernel
from star_jax.graph.samplers.search import first_at_least
from star_jax.graph.store import HAS_REMOVAL, HAS_TIME, SPLITS
from star_jax.shapes import NO_TIME

_NO_TIME = np.int64(NO_TIME)
_FEW = 8  # Pairs of a group that are looked through for a receiver.


class Edges(NamedTuple):
    """`store.Adjacency`, as the kernels see it."""

    bounds: np.ndarray
    sender: np.ndarray
    time: np.ndarray
    removed: np.ndarray
    weight: np.ndarray
    cumulative: np.ndarray
    flags: np.ndarray


class Rule(NamedTuple):
    """Who may see what."""

    time: np.ndarray  # Per group; NO_TIME: no time test.
    use_time: bool
    max_age: int  # Older edges of dated relations are not seen; 0: any age is.
    splits: int  # Bit s: edges of split s are visible.
    pair_bounds: np.ndarray  # Per group, a range of `pairs`.
    pairs: np.ndarray  # Sorted in each range; sender << 32 | receiver.


class Row(NamedTuple):
    """One node's edges of one relation and whom they are for."""

    first: int  # Of all edges.
    begin: int
    end: int  # Of what the time tests leave.
    receiver: int
    group: int
    hidden: int
    plain: bool  # All of begin:end is visible.


@kernel
@no_type_check
def time_bounds(
    edges: Edges, rule: Rule, group: int, begin: int, end: int, dated: bool, traits: int
) -> tuple[int, int]:
    """What the times leave of a row that is sorted by them; ages count under both rules."""
    time = rule.time[group]
    if time == _NO_TIME or not traits & HAS_TIME:
        return begin, end
    if rule.use_time and edges.time[end - 1] >= time:
        end = first_at_least(edges.time, begin, end, time)
    if dated and rule.max_age:
        begin = first_at_least(edges.time, begin, end, time - rule.max_age)
    return begin, end


@kernel
@no_type_check
def plain(rule: Rule, group: int, receiver: int, hidden: int, traits: int) -> bool:
    """Whether no edge of a row can fail `visible`; False where that would take long to tell."""
    if traits & SPLITS & ~rule.splits:
        return False
    if traits & HAS_REMOVAL and rule.use_time and rule.time[group] != _NO_TIME:
        return False
    if hidden:
        begin, end = rule.pair_bounds[group], rule.pair_bounds[group + 1]
        if end - begin > _FEW:
            return False
        for i in range(begin, end):
            pair = rule.pairs[i]
            if receiver == (pair & 0xFFFFFFFF if hidden == 1 else pair >> 32):
                return False
    return True


@kernel
@no_type_check
def visible(edges: Edges, rule: Rule, row: Row, position: int) -> bool:
    """The tests that the order of the row does not answer."""
    if row.plain:
        return True
    if not (rule.splits >> (edges.flags[position] & 3)) & 1:
        return False
    time = rule.time[row.group]
    timed = rule.use_time and time != _NO_TIME
    if timed and edges.removed.size and edges.removed[position] <= time:
        return False
    if row.hidden:
        a, b = np.int64(edges.sender[position]), np.int64(row.receiver)
        pair = a << 32 | b if row.hidden == 1 else b << 32 | a
        end = rule.pair_bounds[row.group + 1]
        found = first_at_least(rule.pairs, rule.pair_bounds[row.group], end, pair)
        return found == end or rule.pairs[found] != pair
    return True
