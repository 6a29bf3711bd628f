"""A graph in DeepGNN's binary format, and the client that opens it in this process.

Nodes of all types are numbered in one row, type after type. A node's neighbours are the senders of
its edges, and every relation is an edge type. DeepGNN's timestamp of an edge is its time, made
unique in its row by its place there: a query for a time answers with what came before, and what it
answers names the edge itself, its weight and its removal included.

Removals and splits are not exported, for two faults of DeepGNN 0.1.66: where edges of a row are
removed, its samplers draw wrong ones, and a query for several edge types loses edges of nodes that
have none of one type.
"""

import importlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.graph.store import GraphStore, span_of
from star_jax.shapes import NO_TIME

_KIND = "deepgnn_graph"


class Clock(NamedTuple):
    """DeepGNN's timestamps: unit after unit of time, with a tick for every place in a row."""

    first: int  # The earliest time of any edge; edges without one come before.
    last: int
    ticks: int  # More than any row is long.

    @classmethod
    def of(cls, store: GraphStore) -> "Clock":
        """The clock of a graph.

        Raises:
          InputError: Times and degrees together need more than 62 bits.
        """
        first, last = span_of(edges.time for edges in store.adjacency.values())
        clock = cls(first, last, 1 + max(store.meta.max_degree.values(), default=0))
        if clock.end >= 1 << 62:
            raise InputError(
                f"times range from {first} to {last} and degrees to {clock.ticks - 1}, needed a "
                "product below 2^62; engine.kind=host has no such limit"
            )
        return clock

    @property
    def end(self) -> int:
        """Later than every edge."""
        return self.ticks * (2 + self.last - self.first)

    def created(self, time: Int[np.ndarray, " n"], place: Int[np.ndarray, " n"]) -> np.ndarray:
        """Timestamps of edges, given their places in their rows."""
        unit = np.where(time == NO_TIME, 0, 1 + np.maximum(time, self.first) - self.first)
        return unit * self.ticks + place

    def before(self, time: Int[np.ndarray, " n"], use_time: bool) -> Int[np.ndarray, " n"]:
        """The latest timestamps of edges before these times; all edges where time hides none."""
        inside = np.clip(time, self.first, self.last + 1)
        exact = self.ticks * (1 + inside - self.first) - 1
        return np.where((time != NO_TIME) & use_time, exact, self.end)


def first_nodes(store: GraphStore) -> dict[str, int]:
    """Node type -> number of its first node."""
    return _starts(store.num_nodes)


def first_types(store: GraphStore) -> dict[str, int]:
    """Node type -> number of the edge type of its first relation."""
    return _starts({name: len(into) for name, into in store.relations.items()})


def _starts(counts: Mapping[str, int]) -> dict[str, int]:
    """Where each begins when they stand one after the other."""
    starts = np.cumsum([0, *counts.values()])[:-1].tolist()
    return dict(zip(counts, starts, strict=True))


def open_graph(store: GraphStore, folder: Path) -> Any:
    """DeepGNN's client of a graph, which is exported if `folder` does not hold it yet.

    Node features are 0: dense columns, float32; 1: categorical columns, int32.

    Raises:
      InputError: DeepGNN is not installed, or the times do not fit.
    """
    client = _library("client")
    if not _holds(folder, store):
        _export(store, folder)
    with warnings.catch_warnings():  # It leaves an empty temporary folder to the collector.
        warnings.simplefilter("ignore", ResourceWarning)
        return client.MemoryGraph(str(folder))


def _holds(folder: Path, store: GraphStore) -> bool:
    if not (folder / artefacts.MANIFEST).exists():
        return False
    return artefacts.read_manifest(folder, _KIND).meta["graph"] == store.version


def _export(store: GraphStore, folder: Path) -> None:
    clock = Clock.of(store)
    with artefacts.writing(folder, _KIND) as partial:
        writer = _library("converter.writers").BinaryWriter(
            str(partial), 0, skip_node_sampler=True, skip_edge_sampler=True, watermark=clock.end
        )
        for name in store.num_nodes:
            writer.add(_records(store, name, clock))
        writer.close()
        artefacts.write_text(partial / "meta.json", json.dumps(_meta(writer, clock)))
        artefacts.set_meta(partial, {"graph": store.version})


def _records(store: GraphStore, name: str, clock: Clock) -> Iterator[tuple[Any, ...]]:
    """Of every node of a type, the node and then its edges by relation and time."""
    first, type_index = first_nodes(store), list(store.num_nodes).index(name)
    edges, into, base = store.adjacency[name], store.relations[name], first_types(store)[name]
    sender_first = np.asarray([first[edge.sender] for edge in into], np.int64)
    for node in range(store.num_nodes[name]):
        number = first[name] + node
        features = [store.dense[name][node], store.categorical[name][node].astype(np.int32)]
        yield number, -1, type_index, 1.0, 0, -1, features
        bounds = np.asarray(edges.bounds[node], np.int64)
        row = slice(int(bounds[0]), int(bounds[-1]))
        relation = np.repeat(np.arange(len(into)), np.diff(bounds))
        place = np.arange(row.start, row.stop) - bounds[relation]
        columns = (
            (edges.sender[row] + sender_first[relation]).tolist(),
            (base + relation).tolist(),
            edges.weight[row].tolist(),
            clock.created(np.asarray(edges.time[row], np.int64), place).tolist(),
        )
        for sender, kind, weight, created in zip(*columns, strict=True):
            yield number, sender, kind, weight, created, -1, []


def _meta(writer: Any, clock: Clock) -> dict[str, Any]:
    """What DeepGNN's own converter writes beside the files of its writer."""
    weights = {"node_weight": writer.node_weight, "edge_weight": writer.edge_weight}
    return {
        "binary_data_version": _library("meta").BINARY_DATA_VERSION,
        "node_count": writer.node_count,
        "edge_count": writer.edge_count,
        "node_type_count": writer.node_type_num,
        "edge_type_count": writer.edge_type_num,
        "node_feature_count": writer.node_feature_count,
        "edge_feature_count": writer.edge_feature_count,
        "partitions": {"0": weights},
        "node_count_per_type": writer.node_type_count,
        "edge_count_per_type": writer.edge_type_count,
        "watermark": clock.end,
    }


def _library(name: str) -> Any:
    try:
        with warnings.catch_warnings():  # Its packages for logging use what Python gives up.
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(f"deepgnn.graph_engine.snark.{name}")
    except ModuleNotFoundError as error:
        raise InputError(
            f"engine.kind=deepgnn needs {error.name}, which is not installed: "
            "`pip install 'star_jax[deepgnn]'`"
        ) from error
