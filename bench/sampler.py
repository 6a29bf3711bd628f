"""Host sampling, on graphs in the paper's proportions: seeds and edges a second, by threads.

Run (PYG and DEEPGNN are Pythons with torch-geometric and with the extra deepgnn):
    PYTHONPATH=. python bench/sampler.py 1600000 16000000 160000000 --pyg PYG --deepgnn DEEPGNN

The arguments are numbers of edges, before their reverses. Node and relation counts are those of the
paper's Tables 10 and 11, scaled; ends are drawn at random, which makes hubs of the types with few
nodes. A batch is 512 members and 512 jobs: `shared`, all in one group, where a node is expanded
once; `own`, each seed in a group of its own, as training examples are. Only topology is sampled: no
feature is read, and what is counted are the seconds of the calls. Beside it stands how many
independent random reads of 4 bytes one thread does in an array as large as all senders of the
graph. Peers (bench/sampler_peers.py) draw from the same graphs by the same fanouts around the same
seeds; DeepGNN from the smallest graph, its writer is slow.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit

from bench.drawn_graph import LEAST_NODES, RELATIONS, SPAN, make_graph, schema_of
from bench.sampler_peers import NUM_SEEDS, SEED_TYPES, Draw, Drawn, Rate, measure, seeds_of
from star_jax.graph.samplers.calibrate import SeedBatch, calibrate
from star_jax.graph.samplers.fanouts import FanoutConfig, channels, resolve
from star_jax.graph.samplers.layout import layout_of
from star_jax.graph.samplers.sample import NO_EXCLUSION, Fanouts, expand
from star_jax.graph.samplers.sampler import PprConfig, SamplerConfig
from star_jax.graph.store import GraphStore
from star_jax.shapes import NO_TIME


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


def draws(store: GraphStore, case: Case) -> Draw:
    """What samples so."""
    asked = {}
    for seed_type in SEED_TYPES:
        fanouts = _fanouts(store, case, seed_type)
        budget = calibrate(
            store,
            lambda number, seed_type=seed_type: _batch(
                case, seeds_of(seed_type, store.num_nodes[seed_type], number)
            ),
            fanouts,
            seed_type=seed_type,
            num_seeds=NUM_SEEDS,
            visible_splits=0b11,
            sampler=case.sampler,
            num_batches=2,
        )
        asked[seed_type] = (fanouts, layout_of(budget))

    def draw(seed_type: str, seeds: np.ndarray) -> Drawn:
        fanouts, layout = asked[seed_type]
        batch = _batch(case, seeds)
        begun = time.perf_counter()
        expansion = expand(
            store,
            layout,
            seed_type=seed_type,
            visible_splits=0b11,
            fanouts=fanouts,
            key=int(seeds[0]),
            sampler=case.sampler,
            use_time=True,
            **batch._asdict(),
        )
        seconds = time.perf_counter() - begun
        return Drawn(int(np.count_nonzero(expansion.slots.mask)), seconds)

    return draw


def _fanouts(store: GraphStore, case: Case, seed_type: str) -> Fanouts:
    fanouts = dict(resolve(case.fanouts, store.meta))
    ranked = channels(case.fanouts, store.meta, case.sampler, [seed_type])
    if not ranked:
        return fanouts
    later = {key: (0, *hops[1:]) for key, hops in fanouts.items()}
    return later | {key: (count, 0) for key, count in ranked.items()}


def _batch(case: Case, seeds: np.ndarray) -> SeedBatch:
    groups = np.arange(NUM_SEEDS) if case.own else np.zeros(NUM_SEEDS)
    now = SPAN // 2 if case.timed else NO_TIME
    times = np.full(NUM_SEEDS if case.own else 1, now, np.int64)
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


def peer_lines(
    store: GraphStore, kind: str, python: str, asked: list[Case], mixed: tuple[int, ...] = ()
) -> Iterator[str]:
    """Lines of a peer's rates in the same cases, and in one that mixes all relations."""
    named = {case.name: _asked(store, case, ()) for case in asked}
    if mixed:
        for case in asked[-2:]:
            how = "with replacement" if case.sampler.replace else "uniform"
            named[f"mixed {mixed[0]}, {mixed[1]}, {how}"] = _asked(store, case, mixed)
    schema = {
        "counts": store.num_nodes,
        "into": {name: [edge.key for edge in into] for name, into in store.relations.items()},
    }
    answer = subprocess.run(
        [python, "bench/sampler_peers.py", kind, str(store.folder)],
        input=json.dumps({"schema": schema, "cases": list(named.values())}),
        env={**os.environ, "PYTHONPATH": "."},
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(answer.stdout.splitlines()[-1])
    for name, rates in zip(named, found["rates"], strict=True):
        yield _line(f"{found['name']}: {name}", "shared", [Rate(*rate) for rate in rates])


def _asked(store: GraphStore, case: Case, mixed: tuple[int, ...]) -> dict[str, Any]:
    fanouts = {seed_type: _fanouts(store, case, seed_type) for seed_type in SEED_TYPES}
    return {"fanouts": fanouts, "replace": case.sampler.replace, "mixed": mixed}


def _line(name: str, groups: str, rates: list[Rate]) -> str:
    cells = [f"{rate.seeds / 1e3:.1f} ({rate.edges / 1e6:.1f})" for rate in rates]
    return f"| {name} | {groups} | {' | '.join(cells)} |"


def main() -> None:
    """Prints one table per graph."""
    parser = argparse.ArgumentParser(description="Host sampling.")
    parser.add_argument("edges", type=int, nargs="+")
    parser.add_argument("--pyg", help="Python with torch-geometric and pyg-lib or torch-sparse")
    parser.add_argument("--deepgnn", help="Python with star_jax[deepgnn]")
    options = parser.parse_args()
    listed = " ".join(map(str, options.edges))
    print("# Host sampling\n")
    print(f"    PYTHONPATH=. python bench/sampler.py {listed} --pyg PYG --deepgnn DEEPGNN\n")
    print(f"{os.cpu_count()} cores of an x86 server. Thousand seeds a second (million edges).")
    peers = {"pyg": options.pyg, "deepgnn": options.deepgnn}
    shared = [case for case in cases() if not (case.own or case.timed)]
    for num_edges in options.edges:
        with tempfile.TemporaryDirectory() as scratch:
            store = make_graph(Path(scratch) / "graph", num_edges)
            reads = random_reads(store)
            print(f"\n## {num_edges / 1e6:.1f} million edges and their reverses\n")
            print(f"Random reads, one thread: {reads / 1e6:.0f} million a second.\n")
            print("| fanouts | groups | 1 thread | 2 threads |\n|---|---|---|---|", flush=True)
            for case in cases():
                draw = draws(store, case)
                rates = [measure(draw, store.num_nodes, threads) for threads in (1, 2)]
                print(_line(case.name, "own" if case.own else "shared", rates), flush=True)
            for kind, python in peers.items():
                small = num_edges == min(options.edges)
                if python and (kind == "pyg" or small):
                    mixed = (100, 10) if kind == "deepgnn" else ()
                    for line in peer_lines(store, kind, python, shared, mixed):
                        print(line, flush=True)
    for kind, python in peers.items():
        if not python:
            print(f"\n{kind}: not measured.")


if __name__ == "__main__":
    main()
