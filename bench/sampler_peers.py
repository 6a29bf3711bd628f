"""The peers of bench/sampler.py, each run by the Python of an environment that has it.

Usage, from bench/sampler.py alone:  PEER bench/sampler_peers.py pyg|deepgnn GRAPH < cases.json

- pyg: torch-geometric's `NeighborSampler` on what it finds: pyg-lib, else torch-sparse. It expands
  a node once per batch, as ours with one group.
- deepgnn: the package's own client, a call per relation and hop (several edge types in one call
  draw in proportion to degrees), or one call for all of them. The seconds are those of its calls;
  what makes each node come once is not counted.

Imports numpy alone before it knows the peer.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NUM_SEEDS = 512  # Of members, and of jobs.
SECONDS = 3.0  # Of one measurement.
SEED_TYPES = ("member", "job")


class Drawn(NamedTuple):
    """One batch's edges, and the seconds that count."""

    edges: int
    seconds: float


Draw = Callable[[str, np.ndarray], Drawn]
"""Samples around seeds of a type."""


class Rate(NamedTuple):
    """What a measurement found."""

    seeds: float  # A second.
    edges: float


@dataclasses.dataclass(frozen=True)
class Case:
    """What is asked of a peer."""

    fanouts: dict[str, dict[str, list[int]]]  # Seed type -> edge key -> per hop.
    replace: bool
    mixed: list[int]  # Neighbours per hop of all relations in one call; empty: as `fanouts` says.


def seeds_of(seed_type: str, count: int, number: int) -> np.ndarray:
    """The seeds of a batch."""
    rng = np.random.default_rng((number, seed_type == "job"))
    return rng.integers(0, count, NUM_SEEDS)


def measure(draw: Draw, counts: dict[str, int], num_threads: int) -> Rate:
    """Samples batches for some seconds; every thread makes batches of its own."""
    for seed_type in SEED_TYPES:
        draw(seed_type, seeds_of(seed_type, counts[seed_type], 0))
    end = time.monotonic() + SECONDS

    def work(thread: int) -> tuple[int, int, float]:
        batches, edges, seconds = 0, 0, 0.0
        while time.monotonic() < end:
            number = 1000 * (thread + 1) + batches
            for seed_type in SEED_TYPES:
                drawn = draw(seed_type, seeds_of(seed_type, counts[seed_type], number))
                edges, seconds = edges + drawn.edges, seconds + drawn.seconds
            batches += 1
        return batches, edges, seconds

    with ThreadPoolExecutor(num_threads) as pool:
        done = list(pool.map(work, range(num_threads)))
    rates = [
        Rate(len(SEED_TYPES) * NUM_SEEDS * batches / seconds, edges / seconds)
        for batches, edges, seconds in done
    ]
    return Rate(*(sum(column) for column in zip(*rates, strict=True)))


class Pyg:
    """torch-geometric's sampler of a graph."""

    def __init__(self, folder: Path, schema: dict[str, Any]) -> None:
        import torch  # pyright: ignore[reportMissingImports]
        import torch_geometric.typing  # pyright: ignore[reportMissingImports]
        from torch_geometric.data import HeteroData  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(1)  # A thread a batch.
        self.name = "pyg-lib" if torch_geometric.typing.WITH_PYG_LIB else "torch-sparse"
        self._data = HeteroData()
        for name, count in schema["counts"].items():
            self._data[name].num_nodes = count
            edges = folder / "edges" / name
            bounds = np.load(edges / "bounds.npy").astype(np.int64)
            sender = np.load(edges / "sender.npy", mmap_mode="r")
            for j, key in enumerate(schema["into"][name]):
                degree = bounds[:, j + 1] - bounds[:, j]
                first = np.cumsum(degree) - degree
                place = np.arange(degree.sum()) + np.repeat(bounds[:, j] - first, degree)
                index = [sender[place].astype(np.int64), np.repeat(np.arange(count), degree)]
                kind = tuple(key.split("__"))
                self._data[kind].edge_index = torch.from_numpy(np.stack(index))

    def draws(self, case: Case) -> Draw:
        """What samples so."""
        import torch  # pyright: ignore[reportMissingImports]
        from torch_geometric.sampler import NeighborSampler, NodeSamplerInput  # pyright: ignore[reportMissingImports]

        samplers = {}
        for seed_type, fanouts in case.fanouts.items():
            numbers = {tuple(key.split("__")): hops for key, hops in fanouts.items()}
            samplers[seed_type] = NeighborSampler(self._data, numbers, replace=case.replace)

        def draw(seed_type: str, seeds: np.ndarray) -> Drawn:
            asked = NodeSamplerInput(None, torch.from_numpy(seeds), input_type=seed_type)
            begun = time.perf_counter()
            found = samplers[seed_type].sample_from_nodes(asked)
            seconds = time.perf_counter() - begun
            return Drawn(sum(len(row) for row in found.row.values()), seconds)

        return draw


class DeepGnn:
    """The client of a graph in its own format."""

    def __init__(self, folder: Path, schema: dict[str, Any]) -> None:
        from star_jax.graph.engines.deepgnn.export import first_nodes, first_types, open_graph
        from star_jax.graph.store import GraphStore

        store = GraphStore.open(folder, None)
        self.name = "DeepGNN"
        self._graph = open_graph(store, folder.with_name("deepgnn"))
        self._nodes, self._types = first_nodes(store), first_types(store)
        self._into = schema["into"]

    def draws(self, case: Case) -> Draw:
        """What samples so."""

        def draw(seed_type: str, seeds: np.ndarray) -> Drawn:
            frontier = {seed_type: np.unique(seeds) + self._nodes[seed_type]}
            known, edges, seconds = frontier[seed_type], 0, 0.0
            for hop in range(len(case.mixed or next(iter(case.fanouts[seed_type].values())))):
                met = []
                for name, nodes in frontier.items():
                    for kinds, count in self._calls(case, seed_type, name, hop):
                        begun = time.perf_counter()
                        found = self._graph.uniform_sample_neighbors(
                            not case.replace, nodes, kinds, count=count
                        )[0].ravel()
                        seconds += time.perf_counter() - begun
                        met.append(found[found >= 0])
                        edges += len(met[-1])
                new = np.setdiff1d(np.concatenate(met), known)
                known = np.union1d(known, new)
                frontier = self._by_type(new)
            return Drawn(edges, seconds)

        return draw

    def _calls(self, case: Case, seed_type: str, name: str, hop: int) -> list[tuple[Any, int]]:
        """Edge types and neighbours of every call for the nodes of one type."""
        kinds = [self._types[name] + j for j in range(len(self._into[name]))]
        if case.mixed:
            return [(kinds, case.mixed[hop])]
        counts = [case.fanouts[seed_type][key][hop] for key in self._into[name]]
        return [(kind, count) for kind, count in zip(kinds, counts, strict=True) if count]

    def _by_type(self, nodes: np.ndarray) -> dict[str, np.ndarray]:
        """Sorted nodes, taken apart at the first numbers of their types."""
        names = list(self._nodes)
        parts = np.split(nodes, np.searchsorted(nodes, [self._nodes[name] for name in names[1:]]))
        return {name: part for name, part in zip(names, parts, strict=True) if len(part)}


def main() -> None:
    """Answers on stdout: the peer's name, and per case the rates by threads."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    asked = json.load(sys.stdin)
    peer = {"pyg": Pyg, "deepgnn": DeepGnn}[kind](folder, asked["schema"])
    rates = []
    for each in asked["cases"]:
        draw = peer.draws(Case(**each))
        rates.append([measure(draw, asked["schema"]["counts"], threads) for threads in (1, 2)])
    print(json.dumps({"name": peer.name, "rates": rates}))


if __name__ == "__main__":
    main()
