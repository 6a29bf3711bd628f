"""The training step that samples inside the program, compiled for TPU chips that are not there.

Run, with `jax[tpu]` installed on any machine:
    export TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu
    PYTHONPATH=. python bench/mesh_tpu.py v5e:4x4 0.1 100 > bench/results/mesh_tpu.md

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
import re
import resource
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from bench.drawn_graph import RELATIONS
from bench.mesh_shapes import (
    TASK,
    batch_shape,
    budgets_of,
    model_of,
    paper_arrays,
    paper_schema,
    places_of,
    train_config,
)
from star_jax.graph.engines.drawing import in_step
from star_jax.graph.engines.mesh.engine import MeshProgram
from star_jax.graph.model import init_model, make_loss
from star_jax.parallel.mesh import make_mesh, num_row_shards
from star_jax.pipeline.graph_training import graph_rules, make_graph_optimizer
from star_jax.shapes import PyTree
from star_jax.train.state import shapes_of_state
from star_jax.train.step import make_step

HBM_GIB = {"v5e": 16, "v5p": 95, "v6e": 32}  # By data sheet.
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
_VIEWS = ("parameter", "bitcast", "get-tuple-element", "tuple", "while", "conditional")
_COLLECTIVES = "all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute"


class Compiled(NamedTuple):
    """What the compiler says of a step, per chip."""

    fanouts: str
    graph_bytes: int
    parameters: int
    rows: dict[str, int]  # By role.
    argument_bytes: int
    temp_bytes: int
    flops: float
    collectives: dict[str, tuple[int, int]]  # Kind -> how many, and their bytes.
    largest: list[tuple[int, str]]  # Bytes and operation of the largest arrays that are made.
    lower_s: float
    compile_s: float
    host_bytes: int  # The most that the process took.


def compile_step(topology: str, share: float, total: tuple[int, ...]) -> Compiled:
    """Lowers and compiles the whole update."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    config = train_config(total, len(devices))
    mesh = make_mesh(config.mesh, devices)
    schema, shards = paper_schema(share), num_row_shards(mesh)
    places = places_of(schema, shards, share)
    model = model_of(config, schema)
    params, statistics = jax.eval_shape(lambda: init_model(model, 0))
    optimizer = make_graph_optimizer(config, model)
    state = shapes_of_state(
        params, optimizer, mesh=mesh, rules=graph_rules(config), statistics=statistics
    )
    step = make_step(
        make_loss(model, task_weights={TASK.name: 1.0}, positive_weight={TASK.name: 1.0}),
        optimizer,
        state=state,
        mesh=mesh,
        prepare=in_step(MeshProgram(schema, places, mesh, config.engine.slack)),
        stateful=True,
    )
    pairs = config.batch_size // shards
    budgets = budgets_of(total, schema, share, pairs)
    arrays = paper_arrays(schema, share, mesh)
    start = time.monotonic()
    lowered = step.lower(state, arrays, batch_shape(mesh, budgets, pairs, config.sampler))
    middle = time.monotonic()
    compiled = lowered.compile()
    end = time.monotonic()
    memory, cost, program = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert memory is not None
    assert cost is not None
    assert program is not None
    return Compiled(
        fanouts=", ".join(map(str, total)),
        graph_bytes=sum(_bytes(leaf) for leaf in jax.tree.leaves(arrays)) // shards,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        rows={role: sum(map(sum, dict(each.rows).values())) for role, each in budgets.items()},
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        flops=float(cost["flops"]),
        collectives=collectives(program),
        largest=largest(program),
        lower_s=middle - start,
        compile_s=end - middle,
        host_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def _bytes(leaf: PyTree) -> int:
    return int(np.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """Kind -> how many a compiled program has, and the bytes that they give one chip."""
    found: dict[str, tuple[int, int]] = {}
    for result, kind in re.findall(rf"= (.*?) ({_COLLECTIVES})(?:-start)?\(", program):
        count, total = found.get(kind, (0, 0))
        found[kind] = (count + 1, total + _result_bytes(result))
    return found


def largest(program: str, count: int = 6) -> list[tuple[int, str]]:
    """Bytes, shape, operation and source of the largest arrays, fused ones and views left out."""
    found: dict[str, int] = {}
    fused = False
    for line in program.splitlines():
        if line.endswith("{"):
            fused = "fused_computation" in line
        made = re.search(r"= ([^(]\S*) ([\w-]+)\(", line)
        if fused or made is None or made[2] in _VIEWS:
            continue
        source = re.search(r'op_name="([^"]*)"', line)
        name = f"{made[1].split('{')[0]} {made[2]} {source[1] if source else ''}"
        found[name] = _result_bytes(made[1].split("{")[0])
    ranked = sorted(((size, name) for name, size in found.items()), reverse=True)
    return ranked[:count]


def _result_bytes(result: str) -> int:
    parts = re.findall(r"(\w+)\[([\d,]*)\]", result)
    return sum(
        _SIZES.get(dtype, 4) * int(np.prod([int(n) for n in shape.split(",") if n]))
        for dtype, shape in parts
    )


def report(topology: str, found: list[Compiled]) -> list[str]:
    """Prints the tables; returns what does not fit."""
    limit, wrong = HBM_GIB[topology.split(":")[0]], []
    print(
        "| fan-outs | rows of a chip, sender + receiver | graph, GiB | all arguments, GiB ", end=""
    )
    print(
        "| temporary, GiB | of a chip's memory | GFLOP a chip | lower, s | compile, s | host, GiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for each in found:
        used = (each.argument_bytes + each.temp_bytes) / 2**30
        cells = [each.fanouts, f"{each.rows['sender']:,} + {each.rows['receiver']:,}"]
        sizes = (each.graph_bytes, each.argument_bytes, each.temp_bytes)
        cells += [f"{size / 2**30:.2f}" for size in sizes]
        cells += [f"{used / limit:.0%}", f"{each.flops / 1e9:.1f}"]
        cells += [f"{each.lower_s:.0f}", f"{each.compile_s:.0f}", f"{each.host_bytes / 2**30:.1f}"]
        print(f"| {' | '.join(cells)} |")
        if used > limit:
            wrong.append(f"fan-outs {each.fanouts}: {used:.1f} GiB, a chip has {limit}")
    print("\n| fan-outs | collective | number | MiB a chip |\n|---|---|---|---|")
    for each in found:
        for kind, (count, size) in sorted(each.collectives.items()):
            print(f"| {each.fanouts} | {kind} | {count} | {size / 2**20:.1f} |")
    print("\n| fan-outs | largest arrays that the step makes | MiB |\n|---|---|---|")
    for each in found:
        for size, name in each.largest:
            print(f"| {each.fanouts} | `{name.strip()}` | {size / 2**20:.0f} |")
    return wrong


def main() -> int:
    """Compiles each fan-out in a process of its own; 1 when one does not fit."""
    topology, share, *fanouts = sys.argv[1:]
    if os.environ.get("ONE_STEP"):
        total = tuple(int(n) for n in fanouts[0].split(","))
        print(json.dumps(compile_step(topology, float(share), total)._asdict()))
        return 0
    found = []
    for each in fanouts:
        command = [sys.executable, __file__, topology, share, each]
        environment = os.environ | {"ONE_STEP": "1"}
        made = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        found.append(Compiled(**json.loads(made.stdout.splitlines()[-1])))
    schema = paper_schema(float(share))
    nodes = sum(node.count for node in schema.nodes.values())
    edges = sum(1e6 * RELATIONS[key] * float(share) for key in RELATIONS)
    print("# The step that samples inside the program, compiled for TPU\n")
    print("    export TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu")
    print(f"    PYTHONPATH=. python bench/mesh_tpu.py {' '.join(sys.argv[1:])} ", end="")
    print("> bench/results/mesh_tpu.md\n")
    print(
        f"jax {jax.__version__}, {topology}, {nodes / 1e6:.0f} M nodes, {edges / 1e9:.2f} B edges "
    )
    print(f"and their reverses, {found[0].parameters / 1e6:.0f} M parameters. Compiled, not run.\n")
    wrong = report(topology, found)
    print("\n" + ("\n".join(wrong) or "Every step fits its chips."))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
