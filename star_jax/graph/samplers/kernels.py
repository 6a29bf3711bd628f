"""The compiled inner loops of sampling: serial, without the GIL, so that threads run in parallel.

All of them stand in one file because numba's cache notices changes of this file only.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Int
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_NO_TIME = np.iinfo(np.int64).min
_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)
_SMALL = 4  # Rows up to this many times the fanout are enumerated, longer ones tried at random.
_log = logging.getLogger(__name__)


class Edges(NamedTuple):
    """`store.Adjacency`, as the kernels see it."""

    bounds: np.ndarray
    sender: np.ndarray
    time: np.ndarray
    removed: np.ndarray
    weight: np.ndarray
    flags: np.ndarray


class Relations(NamedTuple):
    """What is sampled from every row of one receiver type; one entry per relation."""

    column: np.ndarray  # In `Edges.bounds`.
    salt: np.ndarray
    fanout: np.ndarray
    width: np.ndarray  # Slots per row; at least the fanout.
    sender_type: np.ndarray
    start: np.ndarray  # Of the relation's table among the slots of the batch.
    hidden: np.ndarray  # 0: never, 1: hides pairs (sender, receiver), 2: (receiver, sender).


class Rule(NamedTuple):
    """Who may see what."""

    time: np.ndarray  # Per group; NO_TIME: no time test.
    use_time: bool
    splits: int  # Bit s: edges of split s are visible.
    pair_bounds: np.ndarray  # Per group, a range of `pairs`.
    pairs: np.ndarray  # Sorted in each range; sender << 32 | receiver.


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


class Row(NamedTuple):
    """One node's edges of one relation and whom they are for."""

    begin: int
    end: int  # Of what the time test leaves.
    receiver: int
    group: int
    hidden: int


class Draw(NamedTuple):
    """How many edges to draw from a row, and where its random numbers begin."""

    fanout: int
    replace: bool
    start: np.uint64


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function; the machine code is cached beside the source or in the user's cache."""
    # Inlined into one function, numba drops most reference counting: twice as fast.
    compiled: Any = njit(nogil=True, forceinline=True)(function)
    try:
        compiled.enable_caching()
    except RuntimeError as error:  # Read-only installation without a home: compile every time.
        _log.info("numba: %s; set NUMBA_CACHE_DIR to keep compiled code", error)
    return compiled


@kernel
@no_type_check
def mix(x: np.uint64) -> np.uint64:
    """The output function of splitmix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel
@no_type_check
def stream(key: np.uint64, salt: np.uint64, node: int) -> np.uint64:
    """Start of the draws of one node and relation."""
    return mix(mix(key ^ salt) + np.uint64(node) * _GOLDEN)


@kernel
@no_type_check
def below(start: np.uint64, slot: int, n: int) -> tuple[int, int]:
    """An exactly uniform integer below n < 2^31, and the next slot (Lemire's multiplication)."""
    size = np.uint64(n)
    while True:
        slot += 1
        product = (mix(start + np.uint64(slot) * _GOLDEN) >> _32) * size
        low = product & _LOW
        if low >= size or low >= (np.uint64(1 << 32) - size) % size:
            return np.int64(product >> _32), slot


@kernel
@no_type_check
def first_at_least(values: Int[np.ndarray, " M"], begin: int, end: int, bound: int) -> int:
    """First position in begin:end whose value is not below `bound`; `end` if there is none."""
    while begin < end:
        middle = (begin + end) >> 1
        if values[middle] < bound:
            begin = middle + 1
        else:
            end = middle
    return begin


@kernel
@no_type_check
def _visible(edges: Edges, rule: Rule, row: Row, position: int) -> bool:
    """The tests that the order of the row does not answer."""
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
        if _visible(edges, rule, row, position):
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
    picks[:n] = listed[:n]
    return n


@kernel
@no_type_check
def pick(
    edges: Edges,
    rule: Rule,
    row: Row,
    draw: Draw,
    scratch: Int[np.ndarray, " n"],
    picks: Int[np.ndarray, " k"],
) -> int:
    """Puts uniform positions among the visible edges of a row into `picks`; returns how many.

    Long rows are tried at random: what is invisible or picked already is refused, which leaves
    every set of visible edges equally likely. After too many refusals the tries are thrown away
    and the row is enumerated; that event does not depend on which visible edges were met.
    """
    n, fanout = row.end - row.begin, draw.fanout
    if n <= _SMALL * fanout:
        return _enumerate(edges, rule, row, draw, 0, scratch, picks)
    slot, found = 0, 0
    for _ in range(8 * fanout + 64):
        j, slot = below(draw.start, slot, n)
        position = row.begin + j
        fresh = True
        if not draw.replace:
            for i in range(found):
                if picks[i] == position:
                    fresh = False
                    break
        if fresh and _visible(edges, rule, row, position):
            picks[found] = position
            found += 1
            if found == fanout:
                return found
    return _enumerate(edges, rule, row, draw, slot, np.empty(n, np.int64), picks)


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
def expand(
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
    scratch = np.empty(_SMALL * len(picks), np.int64)
    for receiver_row in range(first, last):
        node = rows.node[rows.base[node_type] + receiver_row]
        group = rows.group[rows.base[node_type] + receiver_row]
        time = rule.time[group]
        for r in range(relations.column.size):
            begin = edges.bounds[node, relations.column[r]]
            end = edges.bounds[node, relations.column[r] + 1]
            if begin == end or relations.fanout[r] == 0:
                continue
            if rule.use_time and time != _NO_TIME and edges.time[end - 1] >= time:
                end = first_at_least(edges.time, begin, end, time)
            row = Row(np.int64(begin), np.int64(end), node, group, relations.hidden[r])
            draw = Draw(relations.fanout[r], replace, stream(key, relations.salt[r], node))
            found = pick(edges, rule, row, draw, scratch, picks)
            out = relations.start[r] + (receiver_row - first) * relations.width[r]
            for i in range(found):
                _fill(edges, rows, slots, relations.sender_type[r], group, picks[i], out + i)
                if slots.mask[out + i]:
                    slots.age[out + i] = _age(edges, picks[i], time, age_unit)


@kernel
@no_type_check
def _fill(
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
def _age(edges: Edges, position: int, time: int, age_unit: float) -> float:
    if time == _NO_TIME or not edges.flags[position] & 4:
        return 0.0
    elapsed = np.float64(time) - np.float64(edges.time[position])
    return np.log1p(max(elapsed, 0.0) / age_unit)


@kernel
@no_type_check
def texts_as_of(
    bounds: Int[np.ndarray, " N_plus_1"],
    time: Int[np.ndarray, " versions"],
    text: Int[np.ndarray, " versions"],
    nodes: Int[np.ndarray, " R"],
    times: Int[np.ndarray, " R"],
) -> Int[np.ndarray, " R"]:
    """Per node the last version before its time (NO_TIME: the last of all); -1 if none."""
    out = np.full(nodes.size, -1, np.int32)
    for i in range(nodes.size):
        begin, end = bounds[nodes[i]], bounds[nodes[i] + 1]
        if times[i] != _NO_TIME:
            end = first_at_least(time, begin, end, times[i])
        if end > begin:
            out[i] = text[end - 1]
    return out


@kernel
@no_type_check
def number(
    values: Int[np.ndarray, " R"], capacity: int
) -> tuple[Int[np.ndarray, " R"], Int[np.ndarray, " U"], int]:
    """Numbers distinct values (not negative) in the order they are met.

    Returns:
      The number of each value (-1 for a negative one or where the capacity is exhausted), the
      distinct values, and how many values the capacity left out.
    """
    size = 8
    while size < 2 * values.size:
        size *= 2
    slot_value, slot_number = np.full(size, -1, np.int64), np.empty(size, np.int32)
    numbers, distinct = np.full(values.size, -1, np.int32), np.empty(capacity, np.int32)
    found, dropped = 0, 0
    for i in range(values.size):
        if values[i] < 0:
            continue
        slot = np.int64(mix(np.uint64(values[i])) & np.uint64(size - 1))
        while slot_value[slot] >= 0 and slot_value[slot] != values[i]:
            slot = (slot + 1) & (size - 1)
        if slot_value[slot] < 0:
            if found == capacity:
                dropped += 1
                continue
            slot_value[slot], slot_number[slot] = values[i], found
            distinct[found] = values[i]
            found += 1
        numbers[i] = slot_number[slot]
    return numbers, distinct[:found], dropped
