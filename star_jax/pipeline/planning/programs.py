"""What the compiler says of a program: its memory, its collectives, its largest arrays."""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import jax

from star_jax.pipeline.planning.hlo import ARRAY, NAME, array_bytes, computations, loop_of
from star_jax.pipeline.planning.traffic import memory_traffic

_COLLECTIVE = re.compile(
    r"= (.*?) (ragged-all-to-all|all-to-all|all-gather|all-reduce|reduce-scatter|"
    r"collective-permute)(-start)?\("
)
_CALLED = re.compile(rf"(?:to_apply|calls|condition|branch_computations)=\{{?({NAME}(?:, {NAME})*)")
_GROUP = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\})")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_FUSED = re.compile("fused_computation|collective_fusion")
_NO_ROOM = "RESOURCE_EXHAUSTED: "
_VIEWS = ("parameter", "bitcast", "get-tuple-element", "tuple", "while", "conditional")


class Traffic(NamedTuple):
    """One kind of collective in one run of a program, per chip."""

    number: int
    bytes: int  # That a chip is sent: of a ring, where it matters.


class Program(NamedTuple):
    """A compiled program on one chip.

    Attributes:
      argument_bytes: Of everything it is called with.
      output_bytes: Of its results that do not take the place of arguments.
      temporary_bytes: The most that it needs besides.
      flops: By the compiler, which counts the body of a loop once.
      memory_traffic: Bytes to and from memory, as `memory_traffic` counts them.
      collectives: Kind -> what travels, loops of known length counted as often as they run.
      unknown_loops: Loops with collectives whose length the compiler does not say: counted once.
    """

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    flops: float
    memory_traffic: int
    collectives: dict[str, Traffic]
    unknown_loops: int

    @property
    def peak_bytes(self) -> int:
        """Of a chip's memory."""
        return self.argument_bytes + self.output_bytes + self.temporary_bytes

    @property
    def link_bytes(self) -> int:
        """That a chip is given by others."""
        return sum(traffic.bytes for traffic in self.collectives.values())


class Refused(NamedTuple):
    """What the compiler says of a program that has no room on its chips."""

    reason: str


def compiled(lower: Callable[[], jax.stages.Lowered]) -> Program | Refused:
    """Traces and compiles; a program that needs more memory than there is has no analysis."""
    try:
        return analyse(lower().compile())
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith(_NO_ROOM):
            raise
        return Refused(str(error).splitlines()[0].removeprefix(_NO_ROOM))


def analyse(compiled: jax.stages.Compiled) -> Program:
    """Reads the analyses and the text of a compiled program."""
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert memory is not None
    assert cost is not None
    assert text is not None
    found, unknown = collectives(text)
    return Program(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        flops=float(cost.get("flops", 0.0)),
        memory_traffic=memory_traffic(text),
        collectives=found,
        unknown_loops=unknown,
    )


def collectives(text: str) -> tuple[dict[str, Traffic], int]:
    """Kind -> what travels in one run of a program, and loops with some of unknown length."""
    entry, bodies = computations(text)
    found: list[_Met] = []
    unknown = 0

    def walk(name: str, times: int) -> None:
        nonlocal unknown
        for line in bodies.get(name, ()):
            if made := _COLLECTIVE.search(line):
                carried = _CHANNEL.search(line) if _FUSED.search(name) else None
                channel = carried[1] if carried else None
                found.append(_Met(made[2], channel, times, _sent(made, line)))
            if loop := loop_of(line, bodies):
                before = len(found)
                walk(loop.body, times * (loop.length or 1))
                unknown += loop.length is None and len(found) > before
            else:
                for called in _CALLED.findall(line):
                    for each in called.split(", "):
                        walk(each, times)

    walk(entry, 1)
    return _sums(found), unknown


class _Met(NamedTuple):
    """A collective on the way through a program."""

    kind: str
    channel: str | None  # Of what fusions carry: its start, its steps and its end share one.
    times: int
    bytes: int


def _sums(found: list[_Met]) -> dict[str, Traffic]:
    carried: dict[str, _Met] = {}  # Its steps may run in a loop that its start is not in.
    for met in found:
        if met.channel is not None:
            known = carried.get(met.channel, met)
            carried[met.channel] = met if met.times < known.times else known
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for met in [*(met for met in found if met.channel is None), *carried.values()]:
        sums[met.kind][0] += met.times
        sums[met.kind][1] += met.times * met.bytes
    return {kind: Traffic(*each) for kind, each in sorted(sums.items())}


def _sent(made: re.Match[str], line: str) -> int:
    """Bytes that a chip is sent by one collective."""
    sizes = [array_bytes(shape[0]) for shape in re.finditer(ARRAY, made[1])]
    kind, starts = made[2], made[3] is not None
    if starts and kind == "collective-permute":
        sizes = sizes[1:2]  # What is sent, what is got, and two numbers.
    elif starts and kind == "all-gather":
        sizes = sizes[len(sizes) // 2 :]
    size = sum(sizes)
    if kind == "all-reduce":
        return 2 * size
    if kind == "reduce-scatter":
        group = _GROUP.search(line)
        members = 1 if group is None else int(group[1] or group[2].count(",") + 1)
        return size * (members - 1)
    return size


def largest(text: str, count: int = 6) -> list[tuple[int, str]]:
    """Bytes, shape, operation and source of the largest arrays, fused ones and views left out."""
    found: dict[str, int] = {}
    fused = False
    for line in text.splitlines():
        if line.endswith("{"):
            fused = "fused_computation" in line
        made = re.search(r"= ([^(]\S*) ([\w-]+)\(", line)
        if fused or made is None or made[2] in _VIEWS:
            continue
        source = re.search(r'op_name="([^"]*)"', line)
        name = f"{made[1].split('{')[0]} {made[2]} {source[1] if source else ''}"
        found[name.strip()] = array_bytes(made[1])
    return sorted(((size, name) for name, size in found.items()), reverse=True)[:count]
