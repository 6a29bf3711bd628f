"""The walk of sampling: from a block of rows, relation by relation, to rows for the neighbours."""

import functools
import types
from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Int

from star_jax.graph.samplers.compiled import Compiled, kernel
from star_jax.graph.samplers.draws import mix, stream
from star_jax.graph.samplers.picks import uniform
from star_jax.graph.samplers.picks.draw import Draw, Scratch
from star_jax.graph.samplers.prefetch import prefetch
from star_jax.graph.samplers.visibility import Edges, Row, Rule, plain, time_bounds
from star_jax.graph.store import HAS_OWN_TIME, HAS_TIME, HAS_WEIGHT, SPLITS, TIMED_BIT
from star_jax.shapes import NO_TIME

_NO_TIME = np.int64(NO_TIME)
_STAGED = 1024  # Picks that are looked up together; their memory has come when it is read.
_AHEAD = (16, 8)  # Rows ahead whose bounds, and whose edges, are fetched.
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
    traits: np.ndarray  # As in `store.GraphMeta`.
    longest: np.ndarray  # Row of all.


class Rows(NamedTuple):
    """The node tables of all types, one after the other, and where each stands."""

    node: np.ndarray
    group: np.ndarray
    base: np.ndarray  # Per type, its first entry of `node`; then the end of the last.
    cursor: np.ndarray  # Per type, the next free row of the hop's block.
    limit: np.ndarray  # Per type, the end of the block.
    dropped: np.ndarray  # Per type, edges cut for want of a row.
    places: np.ndarray  # Open addressing by (type, group, node): 1 + entry of `node`; 0 is free.


class Slots(NamedTuple):
    """The neighbour tables of the batch, one after the other."""

    row: np.ndarray  # Of the sender type's table.
    mask: np.ndarray
    weight: np.ndarray
    age: np.ndarray


class Picks(NamedTuple):
    """Picked edges on their way into the slots."""

    position: np.ndarray
    slot: np.ndarray
    relation: np.ndarray
    group: np.ndarray
    place: np.ndarray  # Where in `Rows.places` the search begins.


class Memory(NamedTuple):
    """What a walk works in."""

    drawn: np.ndarray
    scratch: Scratch
    picks: Picks

    @classmethod
    def of(cls, relations: Relations) -> "Memory":
        """For the rows of one receiver type."""
        most = int(relations.fanout.sum())
        return cls(
            np.empty(most, np.int64),
            Scratch.of(int(relations.longest.max(initial=0))),
            Picks(*np.empty((len(Picks._fields), _STAGED + most), np.int64)),
        )


@kernel
@no_type_check
def place_of(rows: Rows, node_type: int, group: int, node: int) -> int:
    """Where in `Rows.places` the search for a node begins."""
    key = np.uint64(node_type) << np.uint64(58) | np.uint64(group) << np.uint64(31)
    return np.int64(mix(key | np.uint64(node)) & np.uint64(rows.places.size - 1))


@kernel
@no_type_check
def _row_from(rows: Rows, node_type: int, group: int, node: int, place: int) -> int:
    """`row_of` by a search that begins at `place`."""
    base, end = rows.base[node_type], rows.base[node_type + 1]
    while rows.places[place]:
        entry = np.int64(rows.places[place]) - 1
        same = rows.node[entry] == node and rows.group[entry] == group
        if same and base <= entry < end:
            return entry - base
        place = (place + 1) & (rows.places.size - 1)
    new = rows.cursor[node_type]
    if new == rows.limit[node_type]:
        return -1
    rows.cursor[node_type] = new + 1
    rows.places[place] = base + new + 1
    rows.node[base + new] = node
    rows.group[base + new] = group
    return new


@kernel
@no_type_check
def row_of(rows: Rows, node_type: int, group: int, node: int) -> int:
    """The row of a node in the tables of its group, taken anew if needed; -1 if none is left."""
    return _row_from(rows, node_type, group, node, place_of(rows, node_type, group, node))


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
    edges: Edges,
    relations: Relations,
    rule: Rule,
    rows: Rows,
    slots: Slots,
    pick: tuple[int, int, int, int, int],
    age_unit: float,
) -> None:
    """Writes one picked edge, an entry of `Picks`, or counts it if its sender has no row."""
    position, slot, r, group, place = pick
    sender_type, traits = relations.sender_type[r], relations.traits[r]
    row = _row_from(rows, sender_type, group, edges.sender[position], place)
    if row < 0:
        rows.dropped[sender_type] += 1
        return
    slots.row[slot] = row
    slots.mask[slot] = True
    slots.weight[slot] = edges.weight[position] if traits & HAS_WEIGHT else np.float32(1.0)
    if traits & HAS_OWN_TIME:
        slots.age[slot] = _age_of(edges, position, rule.time[group], age_unit)


@kernel
@no_type_check
def _age_of(edges: Edges, position: int, time: int, age_unit: float) -> float:
    """log(1 + age / unit) of an edge at a time; 0 without a time on either side."""
    if time == _NO_TIME or not edges.flags[position] & TIMED_BIT:
        return 0.0
    elapsed = np.float64(time) - np.float64(edges.time[position])
    return np.log1p(max(elapsed, 0.0) / age_unit)


@kernel
@no_type_check
def _put(
    edges: Edges,
    relations: Relations,
    rule: Rule,
    rows: Rows,
    slots: Slots,
    picks: Picks,
    count: int,
    age_unit: float,
) -> None:
    """Writes the first `count` picks into their slots."""
    for i in range(count):
        sender_type = relations.sender_type[picks.relation[i]]
        sender = edges.sender[picks.position[i]]
        picks.place[i] = place_of(rows, sender_type, picks.group[i], sender)
        prefetch(rows.places, picks.place[i])
    for i in range(count):
        pick = (
            picks.position[i],
            picks.slot[i],
            picks.relation[i],
            picks.group[i],
            picks.place[i],
        )
        fill_slot(edges, relations, rule, rows, slots, pick, age_unit)


@kernel
@no_type_check
def _fetch_edge(edges: Edges, traits: int, position: int) -> None:
    """Starts to load what `_put` reads of an edge."""
    prefetch(edges.sender, position)
    if traits & HAS_WEIGHT:
        prefetch(edges.weight, position)
    if traits & HAS_OWN_TIME:
        prefetch(edges.flags, position)
        prefetch(edges.time, position)


@kernel
@no_type_check
def _fetch_rows(
    edges: Edges, relations: Relations, rule: Rule, rows: Rows, row: int, last: int
) -> None:
    """Starts to load the bounds of a row further on, and the edges of one less far."""
    width = edges.bounds.shape[1]
    if row + _AHEAD[0] < last:
        prefetch(edges.bounds, np.int64(rows.node[row + _AHEAD[0]]) * width)
    row += _AHEAD[1]
    if row >= last:
        return
    node, is_timed = rows.node[row], rule.time[rows.group[row]] != _NO_TIME
    for r in range(relations.column.size):
        traits = relations.traits[r]
        end = edges.bounds[node, relations.column[r] + 1]
        prefetch(edges.sender, end - 1)
        if is_timed and traits & HAS_TIME:
            prefetch(edges.time, end - 1)
        if traits & SPLITS & ~rule.splits:
            prefetch(edges.flags, end - 1)


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
    memory: Memory,
) -> None:
    """Samples all relations into one block of rows: (type, first row, end row)."""
    node_type, first, last = block
    base, count = rows.base[node_type], 0
    drawn, picks = memory.drawn, memory.picks
    for receiver_row in range(first, last):
        _fetch_rows(edges, relations, rule, rows, base + receiver_row, base + last)
        node = rows.node[base + receiver_row]
        group = rows.group[base + receiver_row]
        for r in range(relations.column.size):
            begin = edges.bounds[node, relations.column[r]]
            end = edges.bounds[node, relations.column[r] + 1]
            if begin == end or relations.fanout[r] == 0:
                continue
            start, traits = np.int64(begin), relations.traits[r]
            hidden, dated = relations.hidden[r], relations.dated[r]
            begin, end = time_bounds(edges, rule, group, start, np.int64(end), dated, traits)
            is_plain = plain(rule, group, node, hidden, traits)
            row = Row(start, begin, end, node, group, hidden, is_plain)
            draw = Draw(relations.fanout[r], replace, stream(key, relations.salt[r], node))
            found = _pick(edges, rule, row, draw, memory.scratch, drawn)
            slot = relations.start[r] + (receiver_row - first) * relations.width[r]
            for i in range(found):
                _fetch_edge(edges, traits, drawn[i])
                picks.position[count], picks.slot[count] = drawn[i], slot + i
                picks.relation[count], picks.group[count] = r, group
                count += 1
        if count > _STAGED:
            _put(edges, relations, rule, rows, slots, picks, count, age_unit)
            count = 0
    _put(edges, relations, rule, rows, slots, picks, count, age_unit)


@functools.cache
def expand_by(pick: Any) -> Compiled:
    """Compiles the walk around one way to pick edges from a row.

    `pick` becomes a global of the walk: held by a closure, it made sampling a fifth slower.
    """
    function = types.FunctionType(_expand.__code__, {**globals(), "_pick": pick}, "expand")
    return kernel(function, calls=pick.py_func.__module__)
