"""What a compiled program means on its chips: whether it fits, how long it takes, what it moves."""

from collections.abc import Iterator
from typing import NamedTuple

from star_jax.pipeline.planning.machines import GIB, Topology
from star_jax.pipeline.planning.programs import Program, Refused

EFFICIENCY = 0.5
"""Of a chip's peak that matrix products reach; the text step had 0.55 on one H200, encoding 0.62
(bench/results/text_gpu.md). Not measured on TPUs."""

HEADROOM = 0.8
"""Of a chip's memory a program may take: the rest is the runtime's and fragmentation's."""


class Planned(NamedTuple):
    """One stage on a topology.

    Attributes:
      stage: The command.
      parts: What a chip holds while it runs: name -> bytes.
      program: Its compiled step, or why there is none.
      working: Parts of its temporary memory: name -> bytes; empty where the compiler says one sum.
      flops: That a chip does in a step.
      unit: What is counted: `tokens`, `pairs`, `nodes`.
      units: Of a step, of all chips.
      steps: Of the whole stage; None: nothing says how many.
      memory_traffic: Bytes that a chip's step moves at least; None: what matrix products hide.
      notes: Choices that were made.
      remedy: What to change where it does not fit.
    """

    stage: str
    parts: dict[str, int]
    program: Program | Refused
    working: dict[str, int]
    flops: float
    unit: str
    units: float | int
    steps: int | None
    memory_traffic: float | None
    notes: tuple[str, ...]
    remedy: str


def peak_bytes(planned: Planned) -> int:
    """Of a chip's memory; where the compiler found no room, the least."""
    if isinstance(planned.program, Program):
        return planned.program.peak_bytes
    return sum(planned.parts.values())


def fits(planned: Planned, topology: Topology) -> bool:
    """Whether it leaves the headroom."""
    refused = isinstance(planned.program, Refused)
    return not refused and peak_bytes(planned) <= HEADROOM * topology.chip.memory


def step_seconds(planned: Planned, topology: Topology) -> dict[str, float]:
    """What a step waits for -> seconds; the longest of them is the step if all else overlaps."""
    chip = topology.chip
    found = {"arithmetic": planned.flops / (EFFICIENCY * chip.flops)}
    if isinstance(planned.program, Program):
        found["links"] = planned.program.link_bytes / chip.link_rate
    if planned.memory_traffic is not None:
        found["memory"] = planned.memory_traffic / chip.memory_rate
    return found


def described(planned: Planned, topology: Topology) -> Iterator[str]:
    """What `star plan` prints of a stage, line by line."""
    program, chip = planned.program, topology.chip
    yield f"{planned.stage} on {topology.name} ({topology.count} chips)"
    yield from (f"  {note}" for note in planned.notes)
    yield "  bytes of a chip:"
    held = dict(planned.parts)
    if isinstance(program, Program):
        held["batch and others"] = program.argument_bytes - sum(planned.parts.values())
        temporary = program.temporary_bytes + program.output_bytes
        held |= planned.working or {"activations and other temporaries": temporary}
    for name, size in held.items():
        yield f"    {name:<36}{_size(size):>12}"
    together = "together" if isinstance(program, Program) else "together, at least"
    peak = peak_bytes(planned)
    verdict = "fits" if fits(planned, topology) else "does NOT fit"
    yield (
        f"    {together:<36}{_size(peak):>12}, {peak / chip.memory:.0%} of {_size(chip.memory)}: "
        f"{verdict} with {1 - HEADROOM:.0%} to spare"
    )
    if not topology.is_tpu:
        yield "  (estimates: compiled for CPUs in the place of GPUs)"
    if isinstance(program, Refused):
        yield f"  the compiler: {program.reason}"
    if not fits(planned, topology):
        yield f"  to make it fit: {planned.remedy}"
    if isinstance(program, Program):
        yield from _exchanged(program)
    yield from _times(planned, topology)


def _exchanged(program: Program) -> Iterator[str]:
    for kind, traffic in program.collectives.items():
        yield f"  {kind}: {traffic.number:,} a step, {traffic.bytes / 1e9:,.3f} GB to a chip"
    if program.unknown_loops:
        yield f"  (counted once: {program.unknown_loops} loops whose length depends on values)"


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"


def _times(planned: Planned, topology: Topology) -> Iterator[str]:
    seconds = step_seconds(planned, topology)
    step_s = max(seconds.values())
    if not step_s:
        return
    shares = ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
    yield f"  {planned.flops / 1e12:,.3f} TFLOP a chip and step; a step: {shares}"
    yield (
        f"  predicted {planned.units / step_s:,.0f} {planned.unit}/s, if all overlaps and matrix "
        f"products reach {EFFICIENCY:.0%} of {topology.chip.flops / 1e12:.0f} TFLOP/s"
    )
    if planned.steps is not None:
        hours = planned.steps * step_s / 3600
        yield (
            f"  {planned.steps:,} step{'s' * (planned.steps != 1)}: {hours:,.2f} hours, "
            f"{hours * topology.count:,.1f} chip-hours"
        )
