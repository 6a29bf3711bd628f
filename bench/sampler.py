"""Host sampling, on graphs in the paper's proportions: seeds and edges a second, by threads.

Run:
    PYTHONPATH=. python bench/sampler.py 1600000 16000000 > bench/results/sampler.md

The arguments are numbers of edges, before their reverses. Node and relation counts are those of the
paper's Tables 10 and 11, scaled; ends are drawn at random, which makes hubs of the types with few
nodes. A batch is 512 members and 512 jobs: `shared`, all in one group, where a node is expanded
once; `own`, each seed in a group of its own, as training examples are. Only topology is sampled: no
feature is read. Beside it stands how many independent random reads of 4 bytes one thread does in an
array as large as all senders of the graph.
"""

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Int32, Int64
from numba import njit

from star_jax import artefacts
from star_jax.config import to_json
from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.fanouts import FanoutConfig, channels, resolve
from star_jax.graph.samplers.layout import layout_of
from star_jax.graph.samplers.sample import NO_EXCLUSION, Fanouts, expand
from star_jax.graph.samplers.sampler import PprConfig, SamplerConfig
from star_jax.graph.schema import EdgeType, GraphSchema, NodeType, parse_key
from star_jax.graph.store import HAS_TIME, Adjacency, GraphMeta, GraphStore
from star_jax.shapes import NO_TIME

# Millions, from Tables 10 and 11 of the paper.
NODES = {
    "member": 376.0,
    "job": 240.0,
    "position": 121.0,
    "company": 19.0,
    "project": 6.0,
    "recruiter": 0.596,
    "skill": 0.042,
    "title": 0.025,
}
RELATIONS = {
    "job__has__title": 417.0,
    "job__at__company": 370.0,
    "member__has__title": 568.0,
    "member__at__company": 462.0,
    "member__current__position": 553.0,
    "member__apply__job": 2722.0,
    "job__has__skill": 3977.0,
    "job__has__position": 358.0,
    "member__has__skill": 1247.0,
    "member__past__position": 15.0,
    "member__save__job": 724.0,
    "member__answers__recruiter": 171.0,
    "recruiter__contacts__member": 92.0,
    "member__in__project": 582.0,
}
TIMED = ("apply", "save", "answers", "contacts")
SPAN = 1_000_000  # Times are drawn from as many.
LEAST_NODES = 8  # Of a type, however small the graph.
NUM_SEEDS = 512  # Of members, and of jobs.
SECONDS = 3.0  # Of one measurement.


class Case(NamedTuple):
    """One line of the table."""

    name: str
    fanouts: FanoutConfig
    sampler: SamplerConfig
    own: bool  # A group for each seed.
    timed: bool  # Seeds see what is older than the middle of the span.


def per_relation(first: int, second: int) -> FanoutConfig:
    """The same numbers for every relation."""
    keys = [edge.key for edge in schema_of(tuple(RELATIONS), 1.0, LEAST_NODES).all_edges()]
    return FanoutConfig(total=(), per_relation=dict.fromkeys(keys, (first, second)))


def cases() -> list[Case]:
    """What is measured."""
    uniform, replace = SamplerConfig(), SamplerConfig(replace=True)
    found = []
    for name, fanouts in (
        ("per relation 100, 10", per_relation(100, 10)),
        ("per relation 10, 10", per_relation(10, 10)),
        ("total 100, 10", FanoutConfig(total=(100, 10))),
    ):
        found += [
            Case(f"{name}, uniform", fanouts, uniform, own=False, timed=False),
            Case(f"{name}, with replacement", fanouts, replace, own=False, timed=False),
            Case(f"{name}, uniform", fanouts, uniform, own=True, timed=False),
            Case(f"{name}, uniform, temporal", fanouts, uniform, own=True, timed=True),
        ]
    ppr = SamplerConfig(kind="ppr", ppr=PprConfig())
    last = SamplerConfig(kind="last_n")
    total = FanoutConfig(total=(100, 10))
    return [
        *found,
        Case("total 100, 10, last n, temporal", total, last, own=True, timed=True),
        Case("PPR 50 5, temporal", FanoutConfig(total=(50, 5)), ppr, own=True, timed=True),
    ]


def schema_of(relations: tuple[str, ...], share: float, least: int) -> GraphSchema:
    """Some of the paper's relations and their types, with a share of its nodes."""
    ends = {end for key in relations for end in key.split("__")[::2]}
    counts = {
        name: max(least, round(1e6 * millions * share))
        for name, millions in NODES.items()
        if name in ends
    }
    return GraphSchema(
        nodes={
            name: NodeType(count=count, categorical={}, dense=()) for name, count in counts.items()
        },
        edges=tuple(
            EdgeType(
                sender=sender,
                relation=relation,
                receiver=receiver,
                kind="interaction" if relation in TIMED else "attribute",
            )
            for sender, relation, receiver in (key.split("__") for key in relations)
        ),
    )


class Edges(NamedTuple):
    """One relation, as its sender type sees it."""

    sender: Int32[np.ndarray, " M"]
    receiver: Int32[np.ndarray, " M"]
    time: Int64[np.ndarray, " M"]


def make_graph(
    folder: Path,
    num_edges: int,
    *,
    relations: tuple[str, ...] = tuple(RELATIONS),
    least: int = LEAST_NODES,
    text_types: tuple[str, ...] = (),
) -> GraphStore:
    """Draws a graph and writes it as `star build-graph` does, without its tables.

    Args:
      folder: To write.
      num_edges: Before their reverses.
      relations: Keys of those that are drawn, in the paper's proportions.
      least: Nodes of a type, however small the graph.
      text_types: Node types whose nodes have one text each, of their own number. The store is
        opened without vectors.
    """
    share = num_edges / (1e6 * sum(RELATIONS[key] for key in relations))
    schema = schema_of(relations, share, least)
    rng = np.random.default_rng(0)
    edges = {}
    for edge in schema.edges:
        size = round(1e6 * RELATIONS[edge.key] * share)
        sender, receiver = (
            rng.integers(0, schema.nodes[name].count, size, dtype=np.int32)
            for name in (edge.sender, edge.receiver)
        )
        timed = edge.relation in TIMED
        times = rng.integers(0, SPAN, size) if timed else np.full(size, NO_TIME, np.int64)
        edges[edge.key] = Edges(sender, receiver, times)
    sizes: dict[str, Int64[np.ndarray, " N"]] = {}
    with artefacts.writing(folder, "graph") as partial:
        for name, node in schema.nodes.items():
            _write_nodes(partial / "nodes" / name, node.count, has_texts=name in text_types)
            sizes |= _write_adjacency(partial / "edges" / name, name, schema, edges)
        meta = GraphMeta(
            version="drawn",
            schema=schema,
            time_unit="ordinal",
            age_unit=1.0,
            dense_stats={},
            text_kind={},
            num_texts={name: schema.nodes[name].count for name in text_types},
            num_edges={key: int(degrees.sum()) for key, degrees in sizes.items()},
            wide_degree={key: int(np.quantile(d, 0.99)) for key, d in sizes.items()},
            max_degree={key: int(degrees.max()) for key, degrees in sizes.items()},
            traits={key: _traits(key) for key in sizes},
            signals={},
            lineage=(),
        )
        artefacts.set_meta(partial, json.loads(to_json(meta)))
    return GraphStore.open(folder, None)


def _write_nodes(folder: Path, count: int, *, has_texts: bool) -> None:
    folder.mkdir(parents=True)
    if has_texts:
        (folder / "texts").mkdir()
        np.save(folder / "texts" / "bounds.npy", np.arange(count + 1))
        np.save(folder / "texts" / "time.npy", np.full(count, NO_TIME, np.int64))
        np.save(folder / "texts" / "text.npy", np.arange(count, dtype=np.int32))
    np.save(folder / "time.npy", np.full(count, NO_TIME, np.int64))
    np.save(folder / "categorical.npy", np.zeros((count, 0), np.int32))
    np.save(folder / "dense.npy", np.zeros((count, 0), np.float32))


def _write_adjacency(
    folder: Path, receiver: str, schema: GraphSchema, edges: dict[str, Edges]
) -> dict[str, Int64[np.ndarray, " N"]]:
    """All relations into one type, node-major; the degrees by edge key."""
    folder.mkdir(parents=True)
    relations = schema.into(receiver)
    ends = [_towards(relation, schema, edges) for relation in relations]
    count = schema.nodes[receiver].count
    degrees = np.stack([np.bincount(e.receiver, minlength=count) for e in ends], axis=1)
    stops = np.cumsum(degrees.reshape(-1)).reshape(degrees.shape)
    bounds = np.concatenate([stops[:, :1] - degrees[:, :1], stops], axis=1)
    total = int(degrees.sum())
    arrays = {
        "sender": np.empty(total, np.int32),
        "time": np.empty(total, np.int64),
        "weight": np.ones(total, np.float32),
        "flags": np.full(total, 1, np.uint8),
        "removed": np.zeros(0, np.int64),
        "cumulative": np.zeros(0, np.float64),
        "bounds": bounds.astype(np.int32),
    }
    for j, each in enumerate(ends):
        order = np.lexsort((each.time, each.receiver))
        before = np.cumsum(degrees[:, j]) - degrees[:, j]
        place = np.repeat(bounds[:, j] - before, degrees[:, j]) + np.arange(len(order))
        arrays["sender"][place] = each.sender[order]
        arrays["time"][place] = each.time[order]
    for name in Adjacency._fields:
        np.save(folder / f"{name}.npy", arrays[name])
    return {relation.key: degrees[:, j] for j, relation in enumerate(relations)}


def _traits(key: str) -> int:
    """All edges are of split 1, without removals and weights."""
    is_timed = parse_key(key)[1].removeprefix("rev_") in TIMED
    return 1 << 1 | (HAS_TIME if is_timed else 0)


def _towards(relation: EdgeType, schema: GraphSchema, edges: dict[str, Edges]) -> Edges:
    if relation in schema.edges:
        return edges[relation.key]
    forward = edges[relation.reverse.key]
    return Edges(forward.receiver, forward.sender, forward.time)


class Rate(NamedTuple):
    """What a measurement found."""

    seeds: float  # A second.
    edges: float


def measure(store: GraphStore, case: Case, num_threads: int) -> Rate:
    """Samples batches for some seconds; every thread makes batches of its own."""
    jobs = []
    for seed_type in ("member", "job"):
        fanouts = _fanouts(store, case, seed_type)
        budget = calibrate(
            store,
            lambda number, seed_type=seed_type: _seeds(store, case, seed_type, number),
            fanouts,
            seed_type=seed_type,
            num_seeds=NUM_SEEDS,
            visible_splits=0b11,
            sampler=case.sampler,
            num_batches=2,
        )
        jobs.append((seed_type, fanouts, layout_of(budget)))
    end = time.monotonic() + SECONDS

    def work(thread: int) -> tuple[int, int]:
        batches, edges = 0, 0
        while time.monotonic() < end:
            number = 1000 * (thread + 1) + batches
            for seed_type, fanouts, layout in jobs:
                seeds = _seeds(store, case, seed_type, number)
                expansion = expand(
                    store,
                    layout,
                    seed_type=seed_type,
                    visible_splits=0b11,
                    fanouts=fanouts,
                    key=number,
                    sampler=case.sampler,
                    use_time=True,
                    **seeds._asdict(),
                )
                edges += int(expansion.slots.mask.sum())
            batches += 1
        return batches, edges

    begun = time.monotonic()
    with ThreadPoolExecutor(num_threads) as pool:
        done = list(pool.map(work, range(num_threads)))
    seconds = time.monotonic() - begun
    batches, edges = (sum(column) for column in zip(*done, strict=True))
    return Rate(2 * NUM_SEEDS * batches / seconds, edges / seconds)


def _fanouts(store: GraphStore, case: Case, seed_type: str) -> Fanouts:
    fanouts = dict(resolve(case.fanouts, store.meta))
    ranked = channels(case.fanouts, store.meta, case.sampler, [seed_type])
    if not ranked:
        return fanouts
    later = {key: (0, *hops[1:]) for key, hops in fanouts.items()}
    return later | {key: (count, 0) for key, count in ranked.items()}


def _seeds(store: GraphStore, case: Case, seed_type: str, number: int) -> SeedBatch:
    rng = np.random.default_rng((number, seed_type == "job"))
    seeds = rng.integers(0, store.num_nodes[seed_type], NUM_SEEDS)
    groups = np.arange(NUM_SEEDS) if case.own else np.zeros(NUM_SEEDS)
    now = SPAN // 2 if case.timed else NO_TIME
    num_groups = NUM_SEEDS if case.own else 1
    times = np.full(num_groups, now, np.int64)
    return SeedBatch(seeds, groups.astype(np.int32), times, NO_EXCLUSION, None)


@njit(nogil=True)
@no_type_check
def _read(values: np.ndarray, places: np.ndarray) -> int:
    total = 0
    for i in range(places.size):
        total += values[places[i]]
    return total


def random_reads(store: GraphStore) -> float:
    """Independent random 4-byte reads a second, one thread, in as many bytes as all senders."""
    size = sum(len(adjacency.sender) for adjacency in store.adjacency.values())
    values = np.ones(size, np.int32)
    places = np.random.default_rng(0).integers(0, size, 20_000_000)
    _read(values, places[:10])
    begun = time.monotonic()
    _read(values, places)
    return len(places) / (time.monotonic() - begun)


def main() -> None:
    """Prints one table per graph."""
    parser = argparse.ArgumentParser(description="Host sampling.")
    parser.add_argument("edges", type=int, nargs="+")
    options = parser.parse_args()
    listed = " ".join(map(str, options.edges))
    print("# Host sampling\n")
    print(f"    PYTHONPATH=. python bench/sampler.py {listed} > bench/results/sampler.md\n")
    print(f"{os.cpu_count()} cores of an x86 server. Thousand seeds a second (million edges).")
    for num_edges in options.edges:
        with tempfile.TemporaryDirectory() as scratch:
            store = make_graph(Path(scratch) / "graph", num_edges)
            reads = random_reads(store)
            print(f"\n## {num_edges / 1e6:.1f} million edges and their reverses\n")
            print(f"Random reads, one thread: {reads / 1e6:.0f} million a second.\n")
            print("| fanouts | groups | 1 thread | 2 threads |\n|---|---|---|---|", flush=True)
            for case in cases():
                rates = [measure(store, case, threads) for threads in (1, 2)]
                cells = [f"{r.seeds / 1e3:.1f} ({r.edges / 1e6:.1f})" for r in rates]
                groups = "own" if case.own else "shared"
                print(f"| {case.name} | {groups} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
