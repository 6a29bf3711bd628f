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
the median of some calls, each waited for. First the draws of a small graph are compared with those
of the host, bit for bit. Exit code 1: they differ, or a bar is missed.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bench.device_graph import draw_arrays
from bench.drawn_graph import RELATIONS, SPAN, make_graph
from bench.mesh_shapes import (
    NEGATIVES,
    TASK,
    TEXT_TYPES,
    Budgets,
    batch_shape,
    budgets_of,
    degrees,
    model_of,
    paper_schema,
    places_of,
    train_config,
)
from star_jax.graph.batches import PairBatch
from star_jax.graph.engines.drawing import in_step
from star_jax.graph.engines.host import HostEngine
from star_jax.graph.engines.mesh.engine import MeshArrays, MeshEngine, MeshProgram, Request, Seeds
from star_jax.graph.engines.mesh.expand import SeedRows
from star_jax.graph.engines.mesh.features import AS_OF
from star_jax.graph.engines.mesh.visibility import Viewers
from star_jax.graph.engines.protocol import Question
from star_jax.graph.model import GraphBatch, init_model, make_loss
from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.sample import Exclusion
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.graph.schema import GraphSchema
from star_jax.parallel.mesh import make_mesh
from star_jax.pipeline.graph_training import graph_rules, make_graph_optimizer
from star_jax.shapes import PyTree
from star_jax.train.state import create_state
from star_jax.train.step import make_step

LEAST_EDGES_PER_S = 1e9
MOST_SHARE = 0.3  # Of sampling and fetching in a step.
REPEATS = 7
SAMPLERS = {
    "uniform": SamplerConfig(),
    "with replacement": SamplerConfig(replace=True),
    "latest": SamplerConfig(kind="last_n"),
    "time-bounded": SamplerConfig(max_age=SPAN // 4),
}


class Drawn(NamedTuple):
    """A graph on the device."""

    schema: GraphSchema
    share: float
    arrays: MeshArrays
    num_edges: int


class Sampled(NamedTuple):
    """What one program does with a batch of pairs."""

    edges: int
    num_cut: int
    sampling_s: float
    fetching_too_s: float


def draw(millions: float, mesh: Mesh) -> Drawn:
    """A graph of so many edges before their reverses."""
    share = millions / sum(RELATIONS.values())
    schema = paper_schema(share)
    arrays, num_edges = draw_arrays(schema, degrees(schema, share), TEXT_TYPES, mesh)
    return Drawn(schema, share, arrays, num_edges)


def program_of(graph: Drawn, mesh: Mesh) -> MeshProgram:
    """The sampler."""
    places = places_of(graph.schema, 1, graph.share)
    return MeshProgram(graph.schema, places, mesh, 1.0)


def batch_of(graph: Drawn, budgets: Budgets, pairs: int, kind: str, mesh: Mesh) -> GraphBatch:
    """Random pairs of random times."""
    shapes = batch_shape(mesh, budgets, pairs, SAMPLERS[kind])
    rng = np.random.default_rng(0)
    groups = pairs // (1 + NEGATIVES)
    time_ = rng.integers(SPAN // 2, SPAN, groups)
    counts = {
        role: graph.schema.nodes[getattr(TASK, role)].count for role in ("sender", "receiver")
    }
    sender = rng.integers(0, counts["sender"], groups)
    receiver = rng.integers(0, counts["receiver"], pairs)
    group = np.repeat(np.arange(groups), 1 + NEGATIVES)
    seeds = {"sender": (sender, np.arange(groups)), "receiver": (receiver, group)}
    hidden = (np.repeat(sender[:, None], 1 + NEGATIVES, 1), receiver.reshape(groups, -1))
    requests: dict[str, Any] = {}
    for role, shape in shapes.tasks[TASK.name]._asdict().items():
        if role in seeds:
            requests[role] = _request(shape, *seeds[role], Viewers(time_, *hidden))
    ones = np.ones((1, pairs), bool)
    label = np.tile([1.0] + [0.0] * NEGATIVES, groups)[None].astype(np.float32)
    batch = PairBatch(
        sender_row=group[None].astype(np.int32),
        receiver_row=np.arange(pairs, dtype=np.int32)[None],
        label=label,
        mask=ones,
        **requests,
    )
    return GraphBatch({TASK.name: batch}, ones)


def _request(shape: Request, node: np.ndarray, group: np.ndarray, viewers: Viewers) -> Request:
    size = shape.seeds.version.shape[1]

    def filled(values: np.ndarray, fill: int) -> np.ndarray:
        return np.pad(values, (0, size - len(values)), constant_values=fill)[None].astype(np.int32)

    real = (np.arange(size) < len(node))[None]
    rows = SeedRows(filled(node, 0), filled(group, 0), real, real)
    seen = Viewers(*(np.asarray(part, np.int32)[None] for part in viewers))
    return Request(
        Seeds(rows, filled(np.full(len(node), AS_OF), AS_OF)),
        seen,
        np.asarray([[1, 2]], np.uint32),
        shape.question,
    )


def median_s(call: Callable[[int], PyTree]) -> float:
    """Of some calls, after one that compiles."""
    jax.block_until_ready(call(0))
    found = []
    for number in range(1, 1 + REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call(number))
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def with_key(batch: GraphBatch, number: int) -> GraphBatch:
    """The same pairs with other draws."""
    key = np.asarray([[number, 7]], np.uint32)
    pairs = batch.tasks[TASK.name]
    drawn = {role: getattr(pairs, role)._replace(key=key) for role in ("sender", "receiver")}
    return batch._replace(tasks={TASK.name: pairs._replace(**drawn)})


def sample(graph: Drawn, batch: GraphBatch, mesh: Mesh) -> Sampled:
    """Times sampling with and without what follows it."""
    prepare = in_step(program_of(graph, mesh))

    @jax.jit
    def edges_only(arrays: MeshArrays, batch: GraphBatch) -> PyTree:
        drawn, figures = prepare(arrays, batch)
        pairs = drawn.tasks[TASK.name]
        kept = [
            (subgraph.hops, {name: (t.node, t.mask) for name, t in subgraph.nodes.items()})
            for subgraph in (pairs.sender, pairs.receiver)
        ]
        return kept, figures

    whole = jax.jit(prepare)
    _, figures = edges_only(graph.arrays, batch)
    return Sampled(
        edges=int(figures["neighbours"]),
        num_cut=int(figures["num_cut"]),
        sampling_s=median_s(lambda i: edges_only(graph.arrays, with_key(batch, i))),
        fetching_too_s=median_s(lambda i: whole(graph.arrays, with_key(batch, i))),
    )


def steps(graph: Drawn, total: tuple[int, ...], batch: GraphBatch, mesh: Mesh) -> dict[str, float]:
    """Seconds of the whole step and of the one on subgraphs that are there."""
    config = train_config(total, 1)
    model = model_of(config, graph.schema)
    loss = make_loss(model, task_weights={TASK.name: 1.0}, positive_weight={TASK.name: 1.0})
    prepare = in_step(program_of(graph, mesh))
    found = {}
    drawn = jax.jit(lambda arrays, batch: prepare(arrays, batch)[0])(graph.arrays, batch)
    for name, first in (("one program", prepare), ("drawn", None)):
        params, running = init_model(model, 0)
        optimizer = make_graph_optimizer(config, model)
        state = create_state(
            params, optimizer, seed=0, mesh=mesh, rules=graph_rules(config), statistics=running
        )
        del params
        step = make_step(loss, optimizer, state=state, mesh=mesh, prepare=first, stateful=True)
        held = [state]
        del state

        def update(number: int, step: Any = step, held: Any = held, name: str = name) -> PyTree:
            given = with_key(batch, number) if name == "one program" else drawn
            arrays = graph.arrays if name == "one program" else ()
            held[0], metrics = step(held[0], arrays, given, 1e-4)
            return metrics

        start = time.perf_counter()
        loss_ = float(jax.block_until_ready(update(0))["loss"])
        found[f"{name}, compile"] = time.perf_counter() - start
        assert np.isfinite(loss_), loss_
        found[name] = median_s(update)
        del held, step
    return found


def agree() -> bool:
    """Whether the device draws what the host draws, kind by kind."""
    same = True
    with tempfile.TemporaryDirectory() as folder:
        store = make_graph(Path(folder) / "graph", 200_000)
        rng = np.random.default_rng(1)
        groups = 64
        nodes = [rng.integers(0, store.num_nodes[name], groups) for name in ("member", "job")]
        batch = SeedBatch(
            seeds=nodes[0].astype(np.int32),
            groups=np.arange(groups, dtype=np.int32),
            group_time=rng.integers(0, SPAN, groups),
            exclude=Exclusion(np.arange(groups), *nodes, ("member__apply__job",)),
            seed_text_row=None,
        )
        mesh = make_mesh(train_config((10, 10), 1).mesh, jax.devices()[:1])
        for kind, sampler in SAMPLERS.items():
            fanouts = dict.fromkeys((edge.key for edge in store.meta.schema.all_edges()), (5, 3))
            common = {"seed_type": "member", "visible_splits": 0b11, "sampler": sampler}
            budget = calibrate(
                store,
                lambda _, b=batch: b,
                fanouts,
                num_seeds=groups,
                num_batches=1,
                key=9,
                **common,
            )
            question = Question(
                budget=budget,
                use_time=True,
                edge_keys=("member__apply__job",),
                num_groups=groups,
                pairs_per_group=1,
                **common,
            )
            host, _ = HostEngine(store).prepare(question, batch, 9)
            engine = MeshEngine(store, mesh)
            request, _ = engine.prepare(question, batch, 9)
            stacked = jax.tree.map(lambda leaf: np.asarray(leaf)[None], request)
            subgraph, cut = jax.jit(engine.subgraphs)(engine.arrays, stacked)
            own = [jax.tree.map(lambda a: np.asarray(a[0]), subgraph.hops), int(cut[0])]
            equal = jax.tree.all(
                jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-6), own, [host.hops, 0])
            )
            edges = sum(int(t.mask.sum()) for hop in host.hops for t in hop.values())
            print(f"{kind}: {edges:,} edges, {'equal' if equal else 'NOT equal'}.", flush=True)
            same &= bool(equal)
    return same


def main() -> int:
    """Prints the tables; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description="Sampling in the program on a GPU.")
    parser.add_argument("--millions", type=float, nargs="+", default=[100.0, 500.0])
    parser.add_argument("--fanouts", nargs="+", default=["10,10", "100,10"])
    parser.add_argument("--pairs", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--kinds", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--step-pairs", type=int, default=1024)
    options = parser.parse_args()
    same = agree()
    mesh = make_mesh(train_config((10, 10), 1).mesh, jax.devices()[:1])
    best, worst_share = 0.0, 0.0
    print(f"\n{jax.devices()[0].device_kind}, jax {jax.__version__}.\n")
    for millions in options.millions:
        start = time.perf_counter()
        graph = jax.block_until_ready(draw(millions, mesh))
        nodes = sum(node.count for node in graph.schema.nodes.values())
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(graph.arrays))
        print(
            f"{nodes / 1e6:.1f} M nodes, {graph.num_edges / 1e6:.0f} M edges with their reverses, "
            f"{size / 1e9:.1f} GB, drawn in {time.perf_counter() - start:.0f} s.\n"
        )
        print("| fan-outs | pairs | kind | edges | cut | sampling ms | + fetching ms | G edges/s |")
        print("|---|---|---|---|---|---|---|---|")
        for fanouts in options.fanouts:
            total = tuple(map(int, fanouts.split(",")))
            for pairs in options.pairs:
                budgets = budgets_of(total, graph.schema, graph.share, pairs)
                for kind in options.kinds:
                    batch = batch_of(graph, budgets, pairs, kind, mesh)
                    found = sample(graph, batch, mesh)
                    rate = found.edges / found.sampling_s
                    best = max(best, rate)
                    print(
                        f"| {fanouts} | {pairs} | {kind} | {found.edges:,} | {found.num_cut} "
                        f"| {1e3 * found.sampling_s:.2f} | {1e3 * found.fetching_too_s:.2f} "
                        f"| {rate / 1e9:.3f} |",
                        flush=True,
                    )
        print("\n| fan-outs | pairs | one program ms | drawn ms | share of sampling | pairs/s ")
        print("| compile s |\n|---|---|---|---|---|---|---|")
        for fanouts in options.fanouts:
            total = tuple(map(int, fanouts.split(",")))
            pairs = options.step_pairs
            budgets = budgets_of(total, graph.schema, graph.share, pairs)
            found = steps(graph, total, batch_of(graph, budgets, pairs, "uniform", mesh), mesh)
            share = 1 - found["drawn"] / found["one program"]
            worst_share = max(worst_share, share)
            print(
                f"| {fanouts} | {pairs} | {1e3 * found['one program']:.1f} "
                f"| {1e3 * found['drawn']:.1f} | {share:.0%} "
                f"| {pairs / found['one program']:,.0f} "
                f"| {found['one program, compile']:.0f} + {found['drawn, compile']:.0f} |",
                flush=True,
            )
        del graph
    bars = {
        "draws equal the host's": same,
        f"at least {LEAST_EDGES_PER_S / 1e9:.0f} G edges/s": best >= LEAST_EDGES_PER_S,
        f"sampling at most {MOST_SHARE:.0%} of a step": worst_share <= MOST_SHARE,
    }
    print("\n" + "\n".join(f"{name}: {'met' if met else 'MISSED'}." for name, met in bars.items()))
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
