"""Compiled searches in sorted and in unsorted numbers."""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Int, Num

from star_jax.graph.samplers.compiled import array_kernel, kernel
from star_jax.graph.samplers.draws import mix
from star_jax.graph.store import NOT_REMOVED
from star_jax.shapes import NO_TIME

_NO_TIME = np.int64(NO_TIME)


class EdgeKeys(NamedTuple):
    """What orders the edges of one relation and node: the first column, then the next ones.

    `removed` may be empty where no edge was ever removed.
    """

    time: Int[np.ndarray, " M"]
    sender: Int[np.ndarray, " M"]
    removed: Int[np.ndarray, " removable"]
    weight: Float[np.ndarray, " M"]
    flags: Int[np.ndarray, " M"]


@kernel
@no_type_check
def first_at_least(values: Num[np.ndarray, " M"], begin: int, end: int, bound: float) -> int:
    """First position in begin:end whose value is not below `bound`; `end` if there is none."""
    while begin < end:
        middle = (begin + end) >> 1
        if values[middle] < bound:
            begin = middle + 1
        else:
            end = middle
    return begin


@array_kernel
@no_type_check
def row_sums(
    rows: Int[np.ndarray, " M"], values: Float[np.ndarray, " M"], row: int, total: float
) -> tuple[Float[np.ndarray, " M"], int, float]:
    """Running sums that begin anew with every row; goes on from (row, total), and returns both."""
    sums = np.empty(values.size, np.float64)
    for i in range(values.size):
        if rows[i] != row:
            row, total = rows[i], 0.0
        total += values[i]
        sums[i] = total
    return sums, row, total


@array_kernel
@no_type_check
def rows_between(
    bounds: Int[np.ndarray, "N r_plus_1"], first: int, last: int
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """Of the positions first:last, the row and the column whose bounds hold each of them."""
    rows, columns = np.empty(last - first, np.int32), np.empty(last - first, np.int32)
    row, end = 0, bounds.shape[0] - 1
    while row < end:
        middle = (row + end) >> 1
        if bounds[middle, bounds.shape[1] - 1] <= first:
            row = middle + 1
        else:
            end = middle
    column = 0
    for i in range(first, last):
        while bounds[row, column + 1] <= i:
            column += 1
            if column == bounds.shape[1] - 1:
                row, column = row + 1, 0
        rows[i - first], columns[i - first] = row, column
    return rows, columns


@array_kernel
@no_type_check
def insertion_points(
    begin: Int[np.ndarray, " A"], end: Int[np.ndarray, " A"], new: EdgeKeys, old: EdgeKeys
) -> Int[np.ndarray, " A"]:
    """Where each new edge goes among the old ones of begin:end, which are in the order of keys."""
    points = np.empty(begin.size, np.int64)
    for i in range(begin.size):
        low, high = begin[i], end[i]
        while low < high:
            middle = (low + high) >> 1
            if _before(new, i, old, middle):
                high = middle
            else:
                low = middle + 1
        points[i] = low
    return points


@kernel
@no_type_check
def _before(new: EdgeKeys, i: int, old: EdgeKeys, j: int) -> bool:
    if new.time[i] != old.time[j]:
        return new.time[i] < old.time[j]
    if new.sender[i] != old.sender[j]:
        return new.sender[i] < old.sender[j]
    removed = old.removed[j] if old.removed.size else NOT_REMOVED
    if new.removed[i] != removed:
        return new.removed[i] < removed
    if new.weight[i] != old.weight[j]:
        return new.weight[i] < old.weight[j]
    return new.flags[i] < old.flags[j]


@array_kernel
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


@array_kernel
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


def places_in_runs(values: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Place of every entry among the equal ones before it; they rise."""
    return np.arange(len(values)) - np.searchsorted(values, values)
