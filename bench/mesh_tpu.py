r"""The training step that samples inside the program, compiled for TPU chips that are not there.

Run, with `jax[tpu]` installed on any machine:
    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu PYTHONPATH=. \
        python bench/mesh_tpu.py v5e:4x4 0.1 100 100,10 > bench/results/mesh_tpu.md

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

import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bench.drawn_graph import LEAST_NODES, RELATIONS, SPAN, schema_of
from configs.run import faithful
from star_jax.graph.batches import Budget, PairBatch
from star_jax.graph.engines.drawing import in_step
from star_jax.graph.engines.mesh.engine import MeshArrays, MeshProgram, Request, Seeds
from star_jax.graph.engines.mesh.expand import SeedRows
from star_jax.graph.engines.mesh.features import NodeArrays
from star_jax.graph.engines.mesh.topology import (
    AXES,
    Clock,
    Edges,
    Places,
    local_count,
    type_places,
)
from star_jax.graph.engines.mesh.visibility import Viewers
from star_jax.graph.engines.protocol import Question
from star_jax.graph.features import NodeFeatures
from star_jax.graph.identities import num_rows
from star_jax.graph.model import GraphBatch, GraphModel, LinkTask, init_model, make_loss
from star_jax.graph.samplers.fanouts import FanoutConfig, resolve
from star_jax.graph.samplers.sample import Fanouts
from star_jax.graph.schema import GraphSchema, parse_key
from star_jax.graph.store import GraphMeta
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline.graph_loader import TRAIN_SPLITS
from star_jax.pipeline.graph_training import graph_rules, make_graph_optimizer
from star_jax.shapes import PyTree
from star_jax.train.state import shapes_of_state
from star_jax.train.step import make_step

TASK = LinkTask("apply", "member", "job")
APPLY = "member__apply__job"
TEXT_TYPES, TEXT_WIDTH = ("member", "job"), 256
COLUMNS, CODES = 11, 1000  # Categorical columns of each of the two, and the codes of each.
NEGATIVES = 1  # A positive's: a group is one sender and two receivers.
SLACK = 2.0
UNEVEN = 1.01  # A shard of edges against an even share: hubs are few and spread.
HBM_GIB = {"v5e": 16, "v5p": 95, "v6e": 32}  # By data sheet.
HEADROOM = 1.1
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
_VIEWS = ("parameter", "bitcast", "get-tuple-element", "tuple", "while", "conditional")
_COLLECTIVES = "all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute"


def graph_shapes(
    schema: GraphSchema,
    mesh: Mesh,
    *,
    edges: int,
    removed: bool,
    texts: dict[str, int],
    text_width: int,
) -> MeshArrays:
    """The arrays of `MeshEngine` with int8 texts, as shapes.

    Args:
      schema: Of the graph.
      mesh: The devices.
      edges: Of a shard, reverses included.
      removed: Whether any edge was.
      texts: Versions of a shard by node type; types without any have none.
      text_width: Of the vectors.
    """
    shards = mesh.size

    def like(*shape: int, dtype: Any = jnp.int32) -> Any:
        joined = (shards * shape[0], *shape[1:])
        where = NamedSharding(mesh, PartitionSpec(AXES))
        return jax.ShapeDtypeStruct(joined, dtype, sharding=where)

    bounds = sum(
        place.stride * local_count(schema.nodes[name].count, shards)
        for name, place in type_places(schema, shards)
    )
    nodes = {}
    for name, node in schema.nodes.items():
        room, versions = local_count(node.count, shards), texts.get(name, 1)
        width = text_width if name in texts else 0
        nodes[name] = NodeArrays(
            text_bounds=like(room + 1),
            text_time=like(versions),
            texts=like(versions, width, dtype=jnp.int8),
            text_scale=like(versions, dtype=jnp.float32),
            categorical=like(room, len(node.categorical)),
            dense=like(room, 2 * len(node.dense), dtype=jnp.float32),
            seen=like(room, dtype=jnp.bool_),
        )
    return MeshArrays(
        Edges(
            bounds=like(bounds),
            sender=like(edges),
            time=like(edges),
            removed=like(edges if removed else 0),
            weight=like(edges, dtype=jnp.float32),
            flags=like(edges, dtype=jnp.uint8),
        ),
        nodes,
    )


def spread_shape(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> Any:
    """Of an array with an entry per device in front."""
    where = NamedSharding(mesh, PartitionSpec(AXES))
    return jax.ShapeDtypeStruct((mesh.size, *shape), dtype, sharding=where)


def request_shape(mesh: Mesh, question: Question) -> Request:
    """What `MeshEngine.prepare` makes, of all devices."""
    size = question.budget.block(question.seed_type, 0)[1]
    groups, pairs = question.num_groups, question.pairs_per_group

    def like(*shape: int, dtype: Any = jnp.int32) -> Any:
        return spread_shape(mesh, shape, dtype)

    flag = like(size, dtype=jnp.bool_)
    return Request(
        seeds=Seeds(SeedRows(like(size), like(size), flag, flag), like(size)),
        viewers=Viewers(like(groups), like(groups, pairs), like(groups, pairs)),
        key=like(2, dtype=jnp.uint32),
        question=question,
    )


def paper_schema(share: float) -> GraphSchema:
    """The paper's types and relations, with features."""
    schema = schema_of(tuple(RELATIONS), share, LEAST_NODES)
    columns = {f"column_{i}": CODES for i in range(COLUMNS)}
    nodes = {
        name: dataclasses.replace(node, categorical=columns) if name in TEXT_TYPES else node
        for name, node in schema.nodes.items()
    }
    return dataclasses.replace(schema, nodes=nodes)


def degrees(schema: GraphSchema, share: float) -> dict[str, float]:
    """Edge key, reverses included, to its mean degree."""
    found = {}
    for edge in schema.edges:
        for each in (edge, edge.reverse):
            total = 1e6 * RELATIONS[edge.key] * share
            found[each.key] = total / schema.nodes[each.receiver].count
    return found


def poisson_above(mean: float, most: int) -> np.ndarray:
    """P(X > i) for i below `most`."""
    if mean > 50 + 2 * most:
        return np.ones(most)
    index = np.arange(most)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most)))])
    return 1.0 - np.cumsum(np.exp(index * np.log(mean) - mean - logs))


def fanouts_of(total: tuple[int, ...], schema: GraphSchema, mean: dict[str, float]) -> Fanouts:
    """As `resolve` shares a total out on a graph of such degrees."""
    most = max(total) + 1
    wide = {}
    for key, degree in mean.items():
        above = poisson_above(degree, most)
        wide[key] = int(np.sum(above > 0.01 * (1 - np.exp(-degree))))
    meta = GraphMeta(
        version="shapes",
        schema=schema,
        time_unit="ordinal",
        age_unit=1.0,
        dense_stats={},
        text_kind={},
        num_texts={},
        num_edges=dict.fromkeys(mean, 0),
        wide_degree=wide,
        max_degree={},
        traits={},
        signals={},
        lineage=(),
    )
    return dict(resolve(FanoutConfig(total=total), meta))


def budget_of(fanouts: Fanouts, mean: dict[str, float], seed_type: str, num_seeds: int) -> Budget:
    """Rows that batches can be expected to need, every seed in a group of its own."""
    num_hops = len(next(iter(fanouts.values())))
    rows: dict[str, list[int]] = defaultdict(lambda: [0] * (num_hops + 1))
    rows[seed_type][0] = num_seeds
    for hop in range(num_hops):
        met: dict[str, float] = defaultdict(float)
        for key, hops in fanouts.items():
            sender, _, receiver = parse_key(key)
            drawn = float(poisson_above(mean[key], hops[hop]).sum()) if hops[hop] else 0.0
            if receiver in rows and rows[receiver][hop] and drawn:
                met[sender] += rows[receiver][hop] * drawn
        for name, number in met.items():
            rows[name][hop + 1] = 8 * int(np.ceil(number * HEADROOM / 8))
    return Budget(
        rows=tuple((name, tuple(sizes)) for name, sizes in sorted(rows.items())),
        fanout=tuple(sorted((key, tuple(hops)) for key, hops in fanouts.items())),
        texts=tuple((name, 0) for name in sorted(rows)),
    )


def train_config(total: tuple[int, ...], devices: int) -> GraphTrainConfig:
    """The preset `faithful` with tables that are updated by rows and split over all devices."""
    config = faithful.get_config().train_graph
    model = config.model
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            model,
            encoder=dataclasses.replace(model.encoder, layers=len(total)),
            features=dataclasses.replace(model.features, identity_update="adagrad"),
        ),
        fanouts=FanoutConfig(total=total),
        mesh=MeshConfig(fsdp=devices),
    )


def model_of(config: GraphTrainConfig, schema: GraphSchema) -> GraphModel:
    """The model of one task."""
    features = tuple(
        NodeFeatures(
            node_type=name,
            num_identities=(
                0 if name in TEXT_TYPES else num_rows(config.model.features, node.count)
            ),
            text_size=TEXT_WIDTH if name in TEXT_TYPES else 0,
            cardinalities=tuple(node.categorical.values()),
            dense_size=0,
        )
        for name, node in sorted(schema.nodes.items())
    )
    keys = tuple(sorted(edge.key for edge in schema.all_edges()))
    return GraphModel(config.model, features, keys, (TASK,))


def batch_shape(mesh: Mesh, budgets: dict[str, Budget], pairs: int, sampler: Any) -> GraphBatch:
    """One step's batch of all devices."""
    groups = pairs // (1 + NEGATIVES)
    requests: dict[str, Any] = {
        role: request_shape(
            mesh,
            Question(
                seed_type=getattr(TASK, role),
                visible_splits=TRAIN_SPLITS,
                budget=budget,
                sampler=sampler,
                use_time=True,
                edge_keys=(APPLY,),
                num_groups=groups,
                pairs_per_group=1 + NEGATIVES,
            ),
        )
        for role, budget in budgets.items()
    }
    mask = spread_shape(mesh, (pairs,), jnp.bool_)
    index = spread_shape(mesh, (pairs,), jnp.int32)
    label = spread_shape(mesh, (pairs,), jnp.float32)
    batch = PairBatch(requests["sender"], requests["receiver"], index, index, label, mask)
    return GraphBatch({TASK.name: batch}, mask)


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
    schema = paper_schema(share)
    mean = degrees(schema, share)
    fanouts = fanouts_of(total, schema, mean)
    pairs = config.batch_size // mesh.size
    budgets = {
        "sender": budget_of(fanouts, mean, TASK.sender, pairs // (1 + NEGATIVES)),
        "receiver": budget_of(fanouts, mean, TASK.receiver, pairs),
    }
    num_edges = sum(2 * 1e6 * RELATIONS[key] * share for key in RELATIONS)
    arrays = graph_shapes(
        schema,
        mesh,
        edges=int(UNEVEN * num_edges / mesh.size),
        removed=False,
        texts={name: local_count(schema.nodes[name].count, mesh.size) for name in TEXT_TYPES},
        text_width=TEXT_WIDTH,
    )
    places = Places(mesh.size, type_places(schema, mesh.size), Clock(0), SPAN / 1000)
    program = MeshProgram(schema, places, mesh, SLACK)
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
        prepare=in_step(program),
        stateful=True,
    )
    start = time.monotonic()
    lowered = step.lower(state, arrays, batch_shape(mesh, budgets, pairs, config.sampler))
    middle = time.monotonic()
    compiled = lowered.compile()
    end = time.monotonic()
    memory, cost, program = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert program is not None
    assert memory is not None
    assert cost is not None
    return Compiled(
        fanouts=", ".join(map(str, total)),
        graph_bytes=sum(_bytes(leaf) for leaf in jax.tree.leaves(arrays)) // mesh.size,
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
        "| temporary, GiB | of a chip's memory | TFLOP a chip | lower, s | compile, s | host, GiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for each in found:
        used = (each.argument_bytes + each.temp_bytes) / 2**30
        cells = [each.fanouts, f"{each.rows['sender']:,} + {each.rows['receiver']:,}"]
        sizes = (each.graph_bytes, each.argument_bytes, each.temp_bytes)
        cells += [f"{size / 2**30:.2f}" for size in sizes]
        cells += [f"{used / limit:.0%}", f"{each.flops / 1e12:.2f}"]
        cells += [f"{each.lower_s:.0f}", f"{each.compile_s:.0f}", f"{each.host_bytes / 2**30:.1f}"]
        print(f"| {' | '.join(cells)} |")
        if used > limit:
            wrong.append(f"fan-outs {each.fanouts}: {used:.1f} GiB, a chip has {limit}")
    print("\n| fan-outs | collective | number | MiB a chip |\n|---|---|---|---|")
    for each in found:
        for kind, (count, size) in sorted(each.collectives.items()):
            print(f"| {each.fanouts} | {kind} | {count} | {size / 2**20:.1f} |")
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
    print("    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu PYTHONPATH=. \\")
    print(
        f"        python bench/mesh_tpu.py {' '.join(sys.argv[1:])} > bench/results/mesh_tpu.md\n"
    )
    print(
        f"jax {jax.__version__}, {topology}, {nodes / 1e6:.0f} M nodes, {edges / 1e9:.2f} B edges "
    )
    print(f"and their reverses, {found[0].parameters / 1e6:.0f} M parameters. Compiled, not run.\n")
    wrong = report(topology, found)
    print("\n" + ("\n".join(wrong) or "Every step fits its chips."))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
