"""The walk of sampling: from a block of rows, relation by relation, to rows for the neighbours."""

import functools
import types
from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Int

from star_jax.graph.samplers.compiled import Compiled, kernel
from star_jax.graph.samplers.draws import mix, stream
from star_jax.graph.samplers.picks import uniform
from star_jax.graph.samplers.picks.draw import Draw
from star_jax.graph.samplers.visibility import Edges, Row, Rule, time_bounds
from star_jax.shapes import NO_TIME

_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)
_NO_TIME = np.int64(NO_TIME)
_SCRATCH = 4  # Room for so many times the fanout.
_pick: Compiled = uniform.pick  # Replaced in every walk that `expand_by` makes.


class Relations(NamedTuple):
    """What is sampled from every row of one receiver type; one entry per relation."""

    column: np.ndarray  # In `Edges.bounds`.
    salt: np.ndarray
    fanout: np.ndarray
    width: np.ndarray  # Slots per row; at least the fanout.
    sender_type: np.ndarray
    start: np.ndarray  # Of the relation's table among the slots of the batch.
    hidden: np.ndarray  # 0: never, 1: hides pairs (sender, receiver), 2: (receiver, sender).
    dated: np.ndarray  # Whether `Rule.max_age` counts.


class Rows(NamedTuple):
    """The node tables of all types, one after the other, and where each stands."""

    node: np.ndarray
    group: np.ndarray
    base: np.ndarray  # Per type, its first entry of `node`.
    cursor: np.ndarray  # Per type, the next free row of the hop's block.
    limit: np.ndarray  # Per type, the end of the block.
    dropped: np.ndarray  # Per type, edges cut for want of a row.
    slot_key: np.ndarray  # Open addressing: (type, group, node) -> row.
    slot_row: np.ndarray


class Slots(NamedTuple):
    """The neighbour tables of the batch, one after the other."""

    row: np.ndarray  # Of the sender type's table.
    mask: np.ndarray
    weight: np.ndarray
    age: np.ndarray


@kernel
@no_type_check
def row_of(rows: Rows, node_type: int, group: int, node: int) -> int:
    """The row of a node in the tables of its group, taken anew if needed; -1 if none is left."""
    key = np.uint64(node_type) << np.uint64(58) | np.uint64(group) << np.uint64(31)
    key |= np.uint64(node)
    wrap = np.uint64(rows.slot_key.size - 1)
    slot = mix(key) & wrap
    while rows.slot_key[slot] != _FREE:
        if rows.slot_key[slot] == key:
            return rows.slot_row[slot]
        slot = (slot + np.uint64(1)) & wrap
    new = rows.cursor[node_type]
    if new == rows.limit[node_type]:
        return -1
    rows.cursor[node_type] = new + 1
    rows.slot_key[slot] = key
    rows.slot_row[slot] = new
    rows.node[rows.base[node_type] + new] = node
    rows.group[rows.base[node_type] + new] = group
    return new


@kernel
@no_type_check
def add_seeds(
    rows: Rows,
    node_type: int,
    seeds: Int[np.ndarray, " S"],
    groups: Int[np.ndarray, " S"],
    shared: Bool[np.ndarray, " S"],
) -> None:
    """Gives every seed its own row; a shared one is also found when it is met as a neighbour."""
    for i in range(seeds.size):
        row = rows.cursor[node_type]
        if shared[i]:
            found = row_of(rows, node_type, groups[i], seeds[i])
            if found == row:
                continue
        rows.node[rows.base[node_type] + row] = seeds[i]
        rows.group[rows.base[node_type] + row] = groups[i]
        rows.cursor[node_type] = row + 1


@kernel
@no_type_check
def fill_slot(
    edges: Edges, rows: Rows, slots: Slots, sender_type: int, group: int, position: int, slot: int
) -> None:
    """Writes one picked edge, or counts it if its sender has no row."""
    row = row_of(rows, sender_type, group, edges.sender[position])
    if row < 0:
        rows.dropped[sender_type] += 1
        return
    slots.row[slot] = row
    slots.mask[slot] = True
    slots.weight[slot] = edges.weight[position]


@kernel
@no_type_check
def age_of(edges: Edges, position: int, time: int, age_unit: float) -> float:
    """log(1 + age / unit) of an edge at a time; 0 without a time on either side."""
    if time == _NO_TIME or not edges.flags[position] & 4:
        return 0.0
    elapsed = np.float64(time) - np.float64(edges.time[position])
    return np.log1p(max(elapsed, 0.0) / age_unit)


@no_type_check
def _expand(
    edges: Edges,
    relations: Relations,
    rule: Rule,
    rows: Rows,
    slots: Slots,
    block: tuple[int, int, int],
    replace: bool,
    key: np.uint64,
    age_unit: float,
) -> None:
    """Samples all relations into one block of rows: (type, first row, end row)."""
    node_type, first, last = block
    picks = np.empty(max(relations.fanout.max(), 1), np.int64)
    scratch = np.empty(_SCRATCH * len(picks), np.int64)
    for receiver_row in range(first, last):
        node = rows.node[rows.base[node_type] + receiver_row]
        group = rows.group[rows.base[node_type] + receiver_row]
        time = rule.time[group]
        for r in range(relations.column.size):
            begin = edges.bounds[node, relations.column[r]]
            end = edges.bounds[node, relations.column[r] + 1]
            if begin == end or relations.fanout[r] == 0:
                continue
            start = np.int64(begin)
            begin, end = time_bounds(edges, rule, group, start, np.int64(end), relations.dated[r])
            row = Row(start, begin, end, node, group, relations.hidden[r])
            draw = Draw(relations.fanout[r], replace, stream(key, relations.salt[r], node))
            found = _pick(edges, rule, row, draw, scratch, picks)
            out = relations.start[r] + (receiver_row - first) * relations.width[r]
            for i in range(found):
                fill_slot(edges, rows, slots, relations.sender_type[r], group, picks[i], out + i)
                if slots.mask[out + i]:
                    slots.age[out + i] = age_of(edges, picks[i], time, age_unit)


@functools.cache
def expand_by(pick: Any) -> Compiled:
    """Compiles the walk around one way to pick edges from a row.

    `pick` becomes a global of the walk: held by a closure, it made sampling a fifth slower.
    """
    function = types.FunctionType(_expand.__code__, {**globals(), "_pick": pick}, "expand")
    return kernel(function, calls=pick.py_func.__module__)
