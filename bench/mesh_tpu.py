"""The training step that samples inside the program, compiled for TPU chips that are not there.

Run, with `jax[tpu]` installed on any machine:
    export TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu
    PYTHONPATH=. python bench/mesh_tpu.py v5e:4x4 0.1 100

Arguments: topology, the graph's share of the paper's (1 = 763 M nodes, 12.3 B edges before their
reverses), and fan-outs, each a total per hop. The arrays of the graph, the parameters and the batch
are shapes with shardings: nothing is placed and nothing runs. The graph has the paper's node types
and all of its relations both ways, random ends, int8 text vectors of 256 for members and jobs, 22
categorical columns on those two together, and a row of the identity tables per node of every other
type. Rows of a batch are what degrees of random ends let expect (Poisson), plus a tenth.

Every compilation is a process of its own, one after the other. XLA counts the body of a loop once,
and of the loops of the sampler it does not know the length: FLOPs are those of the model.
Exit code 1: a step does not fit its chips.
"""

import json
import os
import resource
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax

from bench.drawn_graph import RELATIONS
from bench.mesh_shapes import mesh_step, paper_schema, train_config
from star_jax.parallel.rules import device_bytes
from star_jax.pipeline.planning.machines import GIB, parse_topology, planned_devices
from star_jax.pipeline.planning.prediction import EFFICIENCY, HEADROOM
from star_jax.pipeline.planning.programs import Program, Traffic, analyse, largest

PAPER_PER_S = 9200  # Training instances.


class Compiled(NamedTuple):
    """What the compiler says of a step, per chip."""

    fanouts: str
    pairs: int  # Of all chips.
    graph_bytes: int
    parameters: int
    rows: dict[str, int]  # By role.
    program: Program
    largest: list[tuple[int, str]]  # Bytes and operation of the largest arrays that are made.
    lower_s: float
    compile_s: float
    host_bytes: int  # The most that the process took.


def compile_step(topology: str, share: float, total: tuple[int, ...]) -> Compiled:
    """Lowers and compiles the whole update."""
    devices = planned_devices(parse_topology(topology))
    config = train_config(total, len(devices))
    step = mesh_step(config, devices, share, config.batch_size // len(devices))
    start = time.monotonic()
    lowered = step.lower()
    middle = time.monotonic()
    compiled = lowered.compile()
    end = time.monotonic()
    program, text = analyse(compiled), compiled.as_text()
    assert text is not None
    return Compiled(
        fanouts=", ".join(map(str, total)),
        pairs=config.batch_size,
        graph_bytes=device_bytes(step.arrays),
        parameters=step.parameters,
        rows={role: sum(map(sum, dict(each.rows).values())) for role, each in step.budgets.items()},
        program=program,
        largest=largest(text),
        lower_s=middle - start,
        compile_s=end - middle,
        host_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def report(topology: str, found: list[Compiled]) -> list[str]:
    """Prints the tables; returns what does not fit."""
    chip, wrong = parse_topology(topology).chip, []
    print("| fan-outs | pairs a step | rows of a chip, sender + receiver | graph, GiB ", end="")
    print("| all arguments, GiB | temporary, GiB | of a chip's memory | GFLOP a chip ", end="")
    print("| lower, s | compile, s | host, GiB |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for each in found:
        program = each.program
        cells = [each.fanouts, f"{each.pairs:,}"]
        cells += [f"{each.rows['sender']:,} + {each.rows['receiver']:,}"]
        sizes = (each.graph_bytes, program.argument_bytes, program.temporary_bytes)
        cells += [f"{size / GIB:.2f}" for size in sizes]
        cells += [f"{program.peak_bytes / chip.memory:.0%}", f"{program.flops / 1e9:.1f}"]
        cells += [f"{each.lower_s:.0f}", f"{each.compile_s:.0f}", f"{each.host_bytes / GIB:.1f}"]
        print(f"| {' | '.join(cells)} |")
        if program.peak_bytes > HEADROOM * chip.memory:
            wrong.append(f"fan-outs {each.fanouts}: {program.peak_bytes / GIB:.1f} GiB a chip")
    print("\n| fan-outs | collective | number | MB to a chip |\n|---|---|---|---|")
    for each in found:
        for kind, traffic in each.program.collectives.items():
            print(f"| {each.fanouts} | {kind} | {traffic.number} | {traffic.bytes / 1e6:.1f} |")
    _print_bounds(topology, found)
    print("\n| fan-outs | largest arrays that the step makes | MiB |\n|---|---|---|")
    for each in found:
        for size, name in each.largest:
            print(f"| {each.fanouts} | `{name}` | {size / 2**20:.0f} |")
    return wrong


def _print_bounds(topology: str, found: list[Compiled]) -> None:
    """What data sheets allow: no step is faster, and how much slower one is only a chip says."""
    chip = parse_topology(topology).chip
    print("\n| fan-outs | arithmetic, ms | links, ms | memory, ms | instances/s at most ", end="")
    print("| paper, 36 V100 |\n|---|---|---|---|---|---|")
    for each in found:
        program = each.program
        seconds = [
            program.flops / (EFFICIENCY * chip.flops),
            program.link_bytes / chip.link_rate,
            program.memory_traffic / chip.memory_rate,
        ]
        cells = [f"{1e3 * value:.3f}" for value in seconds]
        cells.append(f"{each.pairs / max(seconds):,.0f}")
        print(f"| {each.fanouts} | {' | '.join(cells)} | {PAPER_PER_S:,} |")


def _read(stored: dict[str, Any]) -> Compiled:
    program = stored.pop("program")
    program["collectives"] = {kind: Traffic(*each) for kind, each in program["collectives"].items()}
    return Compiled(**stored, program=Program(**program))


def main() -> int:
    """Compiles each fan-out in a process of its own; 1 when one does not fit."""
    topology, share, *fanouts = sys.argv[1:]
    if os.environ.get("ONE_STEP"):
        total = tuple(int(n) for n in fanouts[0].split(","))
        made = compile_step(topology, float(share), total)
        print(json.dumps(made._asdict() | {"program": made.program._asdict()}))
        return 0
    found = []
    for each in fanouts:
        command = [sys.executable, __file__, topology, share, each]
        environment = os.environ | {"ONE_STEP": "1"}
        made = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        found.append(_read(json.loads(made.stdout.splitlines()[-1])))
    schema = paper_schema(float(share))
    nodes = sum(node.count for node in schema.nodes.values())
    edges = sum(1e6 * RELATIONS[key] * float(share) for key in RELATIONS)
    print("# The step that samples inside the program, compiled for TPU\n")
    print("    export TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu")
    print(f"    PYTHONPATH=. python bench/mesh_tpu.py {' '.join(sys.argv[1:])}\n")
    print(
        f"jax {jax.__version__}, {topology}, {nodes / 1e6:.0f} M nodes, {edges / 1e9:.2f} B edges "
    )
    print(f"and their reverses, {found[0].parameters / 1e6:.0f} M parameters. Compiled, not run.\n")
    wrong = report(topology, found)
    print("\n" + ("\n".join(wrong) or "Every step fits its chips."))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
