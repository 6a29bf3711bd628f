"""Bytes that a compiled program moves to and from a chip's main memory.

The compiler's own count ("bytes accessed") takes a gather of some rows for a read of the whole
table, an update in place for a rewrite of it, and counts a loop once. Here a gather reads its
slices, an update writes its own, each in lines of `LINE` bytes; loops of known length count as
often as they run, and what lies in a TPU's vector memory (`S(1)`) moves nothing.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from star_jax.pipeline.planning.hlo import (
    ARRAY,
    NAME,
    array_bytes,
    computations,
    loop_of,
    numbers,
)

LINE = 512
"""Bytes of 128 lanes: the least that a TPU's memory is read or written by."""

_MADE = re.compile(rf"\s+(ROOT )?({NAME}) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_LAID = re.compile(r"\w+\[[\d,]*\]\{([\d,]*)")
_SHAPED = re.compile(rf"{ARRAY.pattern}(?:\{{[^}}]*\}})?")
_CALLED = re.compile(rf"(?:calls|to_apply)=({NAME})")
_BRANCHES = re.compile(rf"(?:branch_computations|\w+_computation)=\{{?({NAME}(?:, {NAME})*)")
_FREE = ("parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all", "iota")
_TAKES = ("gather", "dynamic-slice")
_PUTS = {"scatter": 2, "dynamic-update-slice": 1}  # Which operand is what they write.


class _Made(NamedTuple):
    """An instruction."""

    name: str
    shape: str  # With its layout; of several results in brackets.
    kind: str
    operands: list[str]
    line: str
    is_root: bool


def memory_traffic(text: str) -> int:
    """Bytes of one run of a program, by its text."""
    entry, lines = computations(text)
    return _Walk(lines).moved(entry)


class _Walk:
    """Adds up what the computations of a program move."""

    def __init__(self, lines: dict[str, list[str]]) -> None:
        self._lines = lines
        self._made: dict[str, dict[str, _Made]] = {}

    def moved(self, name: str) -> int:
        """Bytes of one run of a computation that is no fusion."""
        body = self._body(name)
        return sum(self._moved_by(each, body) for each in body.values())

    def _moved_by(self, made: _Made, body: dict[str, _Made]) -> int:
        if made.kind in _FREE or made.kind.endswith(("-done", "-update")):
            return 0
        if loop := loop_of(made.line, self._lines):
            return (loop.length or 1) * self.moved(loop.body)
        if made.kind == "conditional":
            branches = (
                each for found in _BRANCHES.findall(made.line) for each in found.split(", ")
            )
            return max(map(self.moved, branches), default=0)
        called = _CALLED.search(made.line)
        if called and made.kind in ("call", "async-start"):
            return self.moved(called[1])
        if called and made.kind == "fusion":
            return self._moved_by_fusion(made, body, called[1])
        if made.kind == "slice":
            return array_bytes(made.shape) + _held(made.shape)
        if made.kind in _TAKES:
            rest = made.operands[1:]
            return _sliced(made, body) + _held(made.shape) + _all_of(rest, body)
        if made.kind in _PUTS:
            return 2 * _updated(made, body) + _all_of(made.operands[1:], body)
        if made.kind == "copy-start":  # To, from, and a number.
            return _held(made.shape)
        if made.kind == "slice-start":  # From, to, and a number.
            to = [shape[0] for shape in _SHAPED.finditer(made.shape)][1]
            return array_bytes(to) + _held(to)
        return _held(made.shape) + _all_of(made.operands, body)

    def _moved_by_fusion(self, made: _Made, body: dict[str, _Made], name: str) -> int:
        inside = self._body(name)
        read = 0
        for number, operand in enumerate(made.operands):
            if operand in body and _held(body[operand].shape):
                read += min(self._read(inside, number), _held(body[operand].shape))
        root = next(each for each in inside.values() if each.is_root)
        return read + (self._written(root, inside) if _held(made.shape) else 0)

    def _read(self, inside: dict[str, _Made], number: int) -> int:
        """Bytes of one operand that the instructions of a fusion read."""
        kept = f"parameter({number})"
        own = next(each for each in inside.values() if kept in each.line)
        return self._read_of(own, inside)

    def _read_of(self, own: _Made, inside: dict[str, _Made]) -> int:
        whole, total = array_bytes(own.shape), 0
        for user in inside.values():
            for place, operand in enumerate(user.operands):
                if operand != own.name:
                    continue
                called = _CALLED.search(user.line)
                if user.kind == "bitcast":
                    total += self._read_of(user, inside)
                elif user.kind == "fusion" and called:
                    total += self._read(self._body(called[1]), place)
                elif user.kind == "slice":
                    total += array_bytes(user.shape)
                elif user.kind in _TAKES and place == 0:
                    total += _sliced(user, inside)
                elif user.kind in _PUTS and place == 0:
                    total += _updated(user, inside)
                else:
                    total += whole
        return min(total, whole)

    def _written(self, root: _Made, inside: dict[str, _Made]) -> int:
        """Bytes that a fusion's result costs: of an update in place, those that change."""
        if root.kind == "tuple":
            return sum(self._written(inside[name], inside) for name in root.operands)
        if root.kind == "bitcast" and root.operands[0] in inside:
            return self._written(inside[root.operands[0]], inside)
        called = _CALLED.search(root.line)
        if root.kind == "fusion" and called:
            body = self._body(called[1])
            return self._written(next(each for each in body.values() if each.is_root), body)
        return _updated(root, inside) if root.kind in _PUTS else array_bytes(root.shape)

    def _body(self, name: str) -> dict[str, _Made]:
        if name not in self._made:
            found = filter(None, map(_MADE.match, self._lines[name]))
            self._made[name] = {made[2]: _parsed(made) for made in found}
        return self._made[name]


def _parsed(made: re.Match[str]) -> _Made:
    depth, end = 1, len(made[5])
    for place, letter in enumerate(made[5]):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if not depth:
            end = place
            break
    operands = re.findall(NAME, made[5][:end])
    return _Made(made[2], made[3], made[4], operands, made[0], made[1] is not None)


def _held(shapes: str) -> int:
    """Bytes of arrays in main memory."""
    found = (each[0] for each in _SHAPED.finditer(shapes))
    return sum(array_bytes(each) for each in found if "S(1)" not in each)


def _all_of(names: Iterable[str], body: dict[str, _Made]) -> int:
    return sum(_held(body[name].shape) for name in names if name in body)


def _sliced(made: _Made, body: dict[str, _Made]) -> int:
    """Bytes that a gather or a slice reads of what it takes from."""
    table = body[made.operands[0]].shape
    sizes = re.search(r"slice_sizes=\{([\d,]*)\}", made.line)
    if sizes is None:
        return 0
    return _lines_of(table, numbers(sizes[1]), array_bytes(made.shape))


def _updated(made: _Made, body: dict[str, _Made]) -> int:
    """Bytes that an update in place writes."""
    update = body[made.operands[_PUTS[made.kind]]].shape
    dimensions = _dimensions(update)
    if made.kind == "scatter":
        windowed = re.search(r"update_window_dims=\{([\d,]*)\}", made.line)
        kept = numbers(windowed[1]) if windowed else []
        dimensions = [size for place, size in enumerate(dimensions) if place in kept]
        inserted = re.search(r"inserted_window_dims=\{([\d,]*)\}", made.line)
        for place in sorted(numbers(inserted[1])) if inserted else ():
            dimensions.insert(place, 1)
    return _lines_of(made.shape, dimensions, array_bytes(update))


def _lines_of(table: str, window: list[int], total: int) -> int:
    """Bytes of lines that windows of a table touch, of so many bytes together."""
    item = array_bytes(re.sub(r"\[.*", "[]", table))
    own = item * math.prod(window)
    if not own:
        return 0
    laid = _LAID.match(table)
    order = numbers(laid[1]) if laid else []
    minor = window[order[0]] if order else 1
    lines = math.prod(window) // minor * -(-minor * item // LINE)
    return total // own * lines * LINE


def _dimensions(shape: str) -> list[int]:
    found = ARRAY.match(shape)
    return numbers(found[2]) if found else []
