"""Sampling inside the compiled program, and the training step around it, on one GPU.

Run (needs requirements-gpu.txt):
    PYTHONPATH=. python bench/graph_gpu.py > bench/results/graph_gpu.md

The graph has the paper's node types and relations in its proportions, both ways, drawn on the
device (bench/device_graph.py): int8 text vectors of 256 for members and jobs, 22 categorical
columns on those two together, a row of the identity tables per node of every other type. The step
is that of the preset `faithful` with tables that are updated by rows: request in, new state out,
one compiled program. `drawn` is the same step on subgraphs that are on the device already, so that
the rest of the time is sampling and fetching features; `sampling` leaves the features out.

Sampled edges are those that reach a batch, padding and what was not visible left out. Times are
the median of some calls, each waited for. The draws of a small graph are compared with those of the
host, bit for bit. A row takes one to two compilations of half a minute each, and is printed at
once. Exit code 1: draws differ, or a bar is missed.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bench.device_graph import batch_of, draw_arrays, with_key
from bench.drawn_graph import RELATIONS, SPAN, make_graph
from bench.mesh_shapes import (
    TASK,
    TEXT_TYPES,
    budgets_of,
    degrees,
    model_of,
    paper_schema,
    places_of,
    train_config,
)
from star_jax.graph.batches import Subgraph
from star_jax.graph.engines.drawing import in_step
from star_jax.graph.engines.host import HostEngine
from star_jax.graph.engines.mesh.engine import MeshArrays, MeshEngine, MeshProgram
from star_jax.graph.engines.protocol import Question
from star_jax.graph.model import GraphBatch, init_model
from star_jax.graph.objective import make_loss
from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.sample import Exclusion
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.schema import GraphSchema
from star_jax.graph.store import GraphStore
from star_jax.parallel.mesh import make_mesh
from star_jax.pipeline.graph_training import graph_rules, make_graph_optimizer
from star_jax.shapes import PyTree
from star_jax.train.state import create_state
from star_jax.train.step import Prepare, make_step

LEAST_EDGES_PER_S = 1e9
MOST_SHARE = 0.3  # Of sampling and fetching in a step.
REPEATS = 9
MOST_FETCHED = 1 << 14  # Pairs.
SAMPLERS = {
    "uniform": SamplerConfig(),
    "with replacement": SamplerConfig(replace=True),
    "latest": SamplerConfig(kind="last_n"),
    "time-bounded": SamplerConfig(max_age=SPAN // 4),
}


class Graph(NamedTuple):
    """On the device."""

    schema: GraphSchema
    share: float
    arrays: MeshArrays
    num_edges: int
    prepare: Prepare
    mesh: Mesh


def draw(millions: float) -> Graph:
    """A graph of so many edges before their reverses."""
    mesh = make_mesh(train_config((1,), 1).mesh, jax.devices()[:1])
    share = millions / sum(RELATIONS.values())
    schema = paper_schema(share)
    arrays, num_edges = draw_arrays(schema, degrees(schema, share), TEXT_TYPES, mesh)
    program = MeshProgram(schema, places_of(schema, 1, share), mesh, slack=1.0)
    return Graph(schema, share, arrays, num_edges, in_step(program), mesh)


def median_s(call: Callable[[int], PyTree]) -> float:
    """Of some calls, after one that warms up."""
    jax.block_until_ready(call(0))
    found = []
    for number in range(1, 1 + REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call(number))
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def sampling_row(graph: Graph, total: tuple[int, ...], pairs: int, kind: str) -> float:
    """Prints a row; edges per second."""
    budgets = budgets_of(total, graph.schema, graph.share, pairs)
    batch = batch_of(graph.schema, budgets, pairs, SAMPLERS[kind], graph.mesh)
    batches = [with_key(batch, number) for number in range(1 + REPEATS)]

    @jax.jit
    def edges_only(arrays: MeshArrays, batch: GraphBatch) -> PyTree:
        drawn, figures = graph.prepare(arrays, batch)
        pairs = drawn.tasks[TASK.name]
        kept = [
            (subgraph.hops, {name: (t.node, t.mask) for name, t in subgraph.nodes.items()})
            for subgraph in (pairs.sender, pairs.receiver)
        ]
        return kept, figures

    start = time.perf_counter()
    figures = jax.device_get(edges_only(graph.arrays, batches[0])[1])
    compile_s = time.perf_counter() - start
    sampling_s = median_s(lambda i: edges_only(graph.arrays, batches[i]))
    fetching = "-"
    if pairs <= MOST_FETCHED:
        whole = jax.jit(graph.prepare)
        fetching = f"{1e3 * median_s(lambda i: whole(graph.arrays, batches[i])):.2f}"
    rate = float(figures["neighbours"]) / sampling_s
    print(
        f"| {', '.join(map(str, total))} | {pairs:,} | {kind} | {int(figures['neighbours']):,} "
        f"| {int(figures['num_cut'])} | {figures['neighbour_fill']:.0%} | {1e3 * sampling_s:.2f} "
        f"| {fetching} | {rate / 1e9:.3f} | {compile_s:.0f} |",
        flush=True,
    )
    return rate


def training_row(graph: Graph, total: tuple[int, ...], pairs: int) -> float:
    """Prints a row; the share of a step that is sampling and fetching."""
    budgets = budgets_of(total, graph.schema, graph.share, pairs)
    batch = batch_of(graph.schema, budgets, pairs, SAMPLERS["uniform"], graph.mesh)
    config = train_config(total, 1)
    model, rules = model_of(config, graph.schema), graph_rules(config)
    optimizer = make_graph_optimizer(config, model)
    loss = make_loss(model, task_weights={TASK.name: 1.0}, positive_weight={TASK.name: 1.0})
    start = time.perf_counter()
    drawn = jax.jit(graph.prepare)(graph.arrays, batch)[0]
    seconds = []
    for prepare, frozen in ((graph.prepare, graph.arrays), (None, ())):
        params, running = init_model(model, 0)
        state = create_state(
            params, optimizer, seed=0, mesh=graph.mesh, rules=rules, statistics=running
        )
        del params  # The state has them, and gives them away.
        step = make_step(
            loss, optimizer, state=state, mesh=graph.mesh, prepare=prepare, stateful=True
        )
        held = [state]
        del state

        def update(
            number: int, step: Any = step, frozen: PyTree = frozen, held: Any = held
        ) -> PyTree:
            given = drawn if frozen == () else with_key(batch, number)
            held[0], metrics = step(held[0], frozen, given, 1e-4)
            return metrics

        value = float(update(0)["loss"])
        assert np.isfinite(value), value
        seconds.append(median_s(update))
        del held[:]
    share = 1 - seconds[1] / seconds[0]
    print(
        f"| {', '.join(map(str, total))} | {pairs:,} | {1e3 * seconds[0]:.1f} "
        f"| {1e3 * seconds[1]:.1f} | {share:.0%} | {pairs / seconds[0]:,.0f} "
        f"| {time.perf_counter() - start:.0f} |",
        flush=True,
    )
    return share


def agree(kinds: Sequence[str]) -> list[str]:
    """Kinds of which the device does not draw what the host draws."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        store = make_graph(Path(folder) / "graph", 200_000)
        rng = np.random.default_rng(1)
        groups = np.arange(64)
        member, job = (rng.integers(0, store.num_nodes[name], 64) for name in ("member", "job"))
        batch = SeedBatch(
            seeds=member.astype(np.int32),
            groups=groups.astype(np.int32),
            group_time=rng.integers(0, SPAN, len(groups)),
            exclude=Exclusion(groups, member, job, ("member__apply__job",)),
            seed_text_row=None,
        )
        for kind in kinds:
            host, device = _drawn_by_both(store, batch, SAMPLERS[kind])
            equal = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-6), host.hops, device.hops)
            if not jax.tree.all(equal):
                wrong.append(kind)
    return wrong


def _drawn_by_both(
    store: GraphStore, batch: SeedBatch, sampler: SamplerConfig
) -> tuple[Subgraph, Subgraph]:
    size = len(batch.seeds)
    fanouts = dict.fromkeys((edge.key for edge in store.meta.schema.all_edges()), (5, 3))
    common: dict[str, Any] = {"seed_type": "member", "visible_splits": 0b11, "sampler": sampler}
    budget = calibrate(
        store, lambda _: batch, fanouts, num_seeds=size, num_batches=1, key=9, **common
    )
    question = Question(
        budget=budget,
        use_time=True,
        edge_keys=("member__apply__job",),
        num_groups=size,
        pairs_per_group=1,
        **common,
    )
    engine = MeshEngine(store, make_mesh(train_config((1,), 1).mesh, jax.devices()[:1]))
    request = jax.tree.map(lambda x: np.asarray(x)[None], engine.prepare(question, batch, 9)[0])
    found, _ = jax.jit(engine.subgraphs)(engine.arrays, request)
    host, _ = HostEngine(store).prepare(question, batch, 9)
    return host, jax.tree.map(lambda leaf: np.asarray(leaf[0]), found)


def main() -> int:
    """Prints the tables; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description="Sampling in the program on a GPU.")
    parser.add_argument("--millions", type=float, default=250.0, help="edges before reverses")
    parser.add_argument("--fanouts", nargs="+", default=["10,10", "100,10"])
    parser.add_argument("--pairs", type=int, nargs="+", default=[4096, 65536])
    parser.add_argument("--kinds", nargs="+", default=["uniform"], choices=list(SAMPLERS))
    parser.add_argument("--step-pairs", type=int, default=1024)
    parser.add_argument("--agree", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    options = parser.parse_args()
    totals = [tuple(map(int, fanouts.split(","))) for fanouts in options.fanouts]
    wrong = agree(options.agree)
    print(f"Draws compared with the host's: {', '.join(options.agree)}; different: {wrong}.")
    start = time.perf_counter()
    graph = jax.block_until_ready(draw(options.millions))
    nodes = sum(node.count for node in graph.schema.nodes.values())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(graph.arrays))
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}; {nodes / 1e6:.1f} M nodes, "
        f"{graph.num_edges / 1e6:.0f} M edges with their reverses, {size / 1e9:.1f} GB, "
        f"drawn in {time.perf_counter() - start:.0f} s.\n"
    )
    print("| fan-outs | pairs | kind | edges | cut | fill | sampling ms | + fetching ms ", end="")
    print("| G edges/s | compile s |\n|---|---|---|---|---|---|---|---|---|---|", flush=True)
    rates = [
        sampling_row(graph, total, pairs, kind)
        for total in totals
        for pairs in options.pairs
        for kind in options.kinds
    ]
    print("\n| fan-outs | pairs | one program ms | drawn ms | sampling and fetching ", end="")
    print("| pairs/s | row took s |\n|---|---|---|---|---|---|---|", flush=True)
    shares = [training_row(graph, total, options.step_pairs) for total in totals]
    bars = {
        "draws are the host's": not wrong,
        f"{LEAST_EDGES_PER_S / 1e9:.0f} G edges/s": max(rates) >= LEAST_EDGES_PER_S,
        f"sampling and fetching below {MOST_SHARE:.0%} of a step": max(shares) < MOST_SHARE,
    }
    print("\n" + "\n".join(f"{name}: {'met' if met else 'MISSED'}." for name, met in bars.items()))
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
