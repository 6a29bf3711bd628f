"""The text of a compiled program: its computations, its loops, the sizes of its arrays."""

import math
import re
from typing import NamedTuple

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s4": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_SIZES |= {"s64": 8, "u64": 8, "f64": 8}
_WORD = 4  # Bytes of every other type.
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
NAME = r"%[\w.\-]+"
_LOOP = re.compile(rf" while\(.*condition=({NAME}), body=({NAME})")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(rf"ROOT .* compare\(({NAME}), ({NAME})\), direction=LT")
_ELEMENT = r"{} = .*get-tuple-element\(.*index=(\d+)"
_ADDED = rf"{{}} = \S+ add\({NAME}, ({NAME})\)"


class Loop(NamedTuple):
    """A loop of a program."""

    body: str
    length: int | None  # How often it runs, where the compiler says so.


def computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """Name of the computation that a program begins with; name -> lines of each."""
    entry, lines, found = "", None, {}
    for line in text.splitlines():
        if opened := re.match(rf"(ENTRY )?({NAME}) .*\{{$", line):
            entry = opened[2] if opened[1] else entry
            lines = found[opened[2]] = []
        elif line == "}":  # Attributes of several lines end in more.
            lines = None
        elif lines is not None:
            lines.append(line)
    return entry, found


def numbers(text: str) -> list[int]:
    """Those that commas part."""
    return [int(n) for n in text.split(",") if n]


def array_bytes(shapes: str) -> int:
    """Bytes of the arrays that a piece of HLO names."""
    return sum(
        _SIZES.get(dtype, _WORD) * math.prod(numbers(shape))
        for dtype, shape in ARRAY.findall(shapes)
    )


def loop_of(line: str, bodies: dict[str, list[str]]) -> Loop | None:
    """The loop that a line is, if it is one."""
    loop = _LOOP.search(line)
    if loop is None:
        return None
    return Loop(loop[2], _length(line, bodies[loop[1]], bodies[loop[2]]))


def _length(line: str, condition: list[str], body: list[str]) -> int | None:
    """How often a loop runs that counts from 0 by a constant; None where values decide."""
    if trips := _TRIPS.search(line):
        return int(trips[1])
    compared = next(filter(None, map(_LIMIT.search, condition)), None)
    if compared is None or (limit := _constant(compared[2], condition)) is None:
        return None
    place = next(filter(None, (re.search(_ELEMENT.format(compared[1]), c) for c in condition)))
    result = next(c for c in body if c.startswith("  ROOT "))
    counted = re.findall(NAME, result[result.rindex("tuple(") :])[int(place[1])]
    added = next(filter(None, (re.search(_ADDED.format(counted), c) for c in body)), None)
    step = None if added is None else _constant(added[1], body)
    return -(-limit // (step or 1))


def _constant(name: str, lines: list[str]) -> int | None:
    """Its value, where the lines make it."""
    pattern = re.compile(rf"  {re.escape(name)} = \w+\[\]\S* constant\((\d+)\)")
    return next((int(made[1]) for made in map(pattern.match, lines) if made), None)
