"""The graph on disk, opened by memory map: adjacency, features, text versions, text vectors."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from star_jax.artefacts import read_manifest
from star_jax.config import InputError, from_json
from star_jax.embeddings.reuse import VectorFiles
from star_jax.embeddings.table import open_vectors, read_columns
from star_jax.graph.arrays import release
from star_jax.graph.schema import EdgeType, GraphSchema
from star_jax.shapes import NO_TIME

SPLIT_BITS = 0b011  # Of an edge's flags: 0 always visible, 1 train, 2 val, 3 test.
TIMED_BIT = 0b100  # The edge has a time of its own.
# Traits of a relation: what some edge of it has.
SPLITS = 0b1111  # 1 << split.
HAS_TIME = 1 << 4  # From which it counts, its own or its sender's.
HAS_OWN_TIME = 1 << 5
HAS_REMOVAL = 1 << 6
HAS_WEIGHT = 1 << 7  # Other than 1.
_CHUNK_NODES = 1 << 16
NOT_REMOVED = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class TextNumbers:
    """Texts named by their numbers, for whoever encodes them after sampling.

    Attributes:
      width: Of the vectors that they will have.
    """

    width: int


TextSource = Path | Mapping[str, int] | TextNumbers | None
"""As `GraphStore.open` takes it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Addition:
    """What one `star append-edges` added to a graph.

    Attributes:
      parent: Version that it was added to.
      num_nodes: Node type -> nodes added.
      num_edges: Edge key, as imported -> edges added.
      num_texts: Node type -> texts added.
      files: File of the additions -> its sha256.
    """

    parent: str
    num_nodes: dict[str, int]
    num_edges: dict[str, int]
    num_texts: dict[str, int]
    files: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphMeta:
    """What the manifest of a graph says.

    Attributes:
      version: Names the content: a digest of the schema and of every array.
      schema: Node and edge types.
      time_unit: Of every time; "unix_s" or "ordinal".
      age_unit: Time that counts as 1 inside log(1 + age / unit).
      dense_stats: Node type -> column -> mean and standard deviation over training nodes.
      text_kind: Node type -> kind of the text versions that were indexed.
      num_texts: Node type -> text vectors that the index points into.
      num_edges: Edge key, reverses included -> edges.
      wide_degree: Edge key, reverses included -> 99th percentile of the non-zero degrees.
      max_degree: Edge key, reverses included -> largest degree.
      traits: Edge key, reverses included -> what some edge has, in the bits named above.
      signals: Signal -> the parts it stands for, as `star branch` names them; empty for a graph of
        all that was imported. No part of the version.
      lineage: What was added since the graph was built from tables, the oldest first. No part of
        the version, which names the content however it came about.
    """

    version: str
    schema: GraphSchema
    time_unit: str
    age_unit: float
    dense_stats: dict[str, dict[str, tuple[float, float]]]
    text_kind: dict[str, str]
    num_texts: dict[str, int]
    num_edges: dict[str, int]
    wide_degree: dict[str, int]
    max_degree: dict[str, int]
    traits: dict[str, int]
    signals: dict[str, tuple[str, ...]]
    lineage: tuple[Addition, ...]


class Adjacency(NamedTuple):
    """The edges into one node type, node-major: all relations of a node lie side by side.

    Relation j of node n is `bounds[n, j]:bounds[n, j + 1]`, sorted by `time`.
    """

    bounds: Int[np.ndarray, "N r_plus_1"]
    sender: Int[np.ndarray, " M"]
    time: Int[np.ndarray, " M"]  # The later of the edge's time and its sender's creation.
    removed: Int[np.ndarray, " removable"]  # One per edge, or empty if no edge was ever removed.
    weight: Float[np.ndarray, " M"]
    # Of the weights, from the first edge of each relation and node on; empty if equal, above 0.
    cumulative: Float[np.ndarray, " M_weighted"]
    flags: Int[np.ndarray, " M"]  # SPLIT_BITS and TIMED_BIT.


class TextVersions(NamedTuple):
    """Per node the text versions in order of time: `bounds[n]:bounds[n + 1]`."""

    bounds: Int[np.ndarray, " N_plus_1"]
    time: Int[np.ndarray, " versions"]
    text: Int[np.ndarray, " versions"]  # Row of the text vectors.


class GraphStore:
    """One immutable graph. Arrays are read-only maps of files, so that threads share them."""

    def __init__(self, folder: Path, text: TextSource, min_edges: int) -> None:
        self.folder = folder
        self.text = text
        self.min_edges = min_edges
        self.meta = from_json(GraphMeta, json.dumps(read_manifest(folder, "graph").meta))
        schema = self.meta.schema
        self.num_nodes = {name: node.count for name, node in schema.nodes.items()}
        self.relations: dict[str, tuple[EdgeType, ...]] = {
            name: schema.into(name) for name in schema.nodes
        }
        self.adjacency = {
            name: Adjacency(*_load_all(folder / "edges" / name, Adjacency._fields))
            for name in schema.nodes
        }
        self._seen: dict[str, np.ndarray] = {}
        nodes = {name: folder / "nodes" / name for name in schema.nodes}
        self.node_time = {name: _load(path / "time.npy") for name, path in nodes.items()}
        self.categorical = {name: _load(path / "categorical.npy") for name, path in nodes.items()}
        self.dense = {name: _load(path / "dense.npy") for name, path in nodes.items()}
        self.text_versions = {
            name: TextVersions(*_load_all(nodes[name] / "texts", TextVersions._fields))
            for name in self.meta.num_texts
        }
        self.text_vectors = {
            name: _text_vectors(text, name, needed)
            for name, needed in self.meta.num_texts.items()
            if text is not None
        }

    @classmethod
    def open(cls, folder: Path, text: TextSource, min_edges: int = 1) -> "GraphStore":
        """Opens the artefact `folder`.

        Args:
          folder: Output of `star build-graph`.
          text: Output of `star export-text`; or node type -> width of zeros in place of its text
            vectors; or their numbers alone; None switches text features off.
          min_edges: How many edges are enough for a node to be `seen`.

        Raises:
          InputError: An artefact is missing, or the text vectors belong to other tables.
        """
        return cls(folder, text, min_edges)

    def __reduce__(self) -> tuple[type["GraphStore"], tuple[Path, TextSource, int]]:
        # Worker processes map the files anew.
        return GraphStore, (self.folder, self.text, self.min_edges)

    def __copy__(self) -> "GraphStore":
        # Over the same maps: pages of a file that is mapped twice count twice.
        view = object.__new__(GraphStore)
        view.__dict__ |= self.__dict__
        return view

    @property
    def version(self) -> str:
        """Names the content of the graph."""
        return self.meta.version

    def release(self) -> None:
        """Lets go of the pages of edges and vectors that were read; they are read again when asked.

        What reads all nodes in order calls this as it goes, so that it does not end up with the
        whole graph in its resident memory.
        """
        for adjacency in self.adjacency.values():
            for array in adjacency:
                release(array)
        for vectors in self.text_vectors.values():
            if isinstance(vectors, VectorFiles):
                vectors.release()

    def seen(self, node_type: str) -> Bool[np.ndarray, " N"]:
        """Per node, whether enough edges end in it that are always visible or of training."""
        if node_type not in self._seen:
            self._seen[node_type] = _seen(self.adjacency[node_type], self.min_edges)
        return self._seen[node_type]

    def text_size(self, node_type: str) -> int:
        """Width of the text vectors of a type; 0 without text features."""
        if node_type not in self.text_vectors:
            return 0
        if isinstance(self.text, TextNumbers):
            return self.text.width
        return self.text_vectors[node_type].shape[1]


def _seen(adjacency: Adjacency, min_edges: int) -> Bool[np.ndarray, " N"]:
    seen = []
    for first in range(0, len(adjacency.bounds), _CHUNK_NODES):
        bounds = np.asarray(adjacency.bounds[first : first + _CHUNK_NODES], np.int64)
        begin, end = bounds[:, 0], bounds[:, -1]
        split = adjacency.flags[begin[0] : end[-1]] & SPLIT_BITS
        before = np.concatenate([[0], np.cumsum(split <= 1)])
        seen.append(before[end - begin[0]] - before[begin - begin[0]] >= min_edges)
    return np.concatenate([np.zeros(0, np.bool_), *seen])


def span_of(times: Iterable[Int[np.ndarray, " _"]]) -> tuple[int, int]:
    """The earliest and the latest of all known times; zeros without any."""
    known = [part[part != NO_TIME] for part in times]
    first = min((int(part.min()) for part in known if len(part)), default=0)
    return first, max((int(part.max()) for part in known if len(part)), default=0)


def relation_salt(key: str) -> int:
    """What makes the draws of one relation differ from another's; depends on the name alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")


def _text_vectors(
    text: Path | Mapping[str, int] | TextNumbers, node_type: str, needed: int
) -> Num[np.ndarray, "U E"] | VectorFiles:
    if isinstance(text, TextNumbers):
        return np.arange(needed, dtype=np.int32)[:, None]
    if isinstance(text, Mapping):
        return np.broadcast_to(np.float32(0), (needed, text[node_type]))
    vectors = open_vectors(text, node_type)
    text_id = read_columns(text, node_type, "text_id")["text_id"].to_numpy()
    if not np.array_equal(text_id, np.arange(len(text_id))):
        raise InputError(f"{text}/{node_type} is not sorted by text_id; run `star export-text`")
    if len(text_id) < needed:
        raise InputError(
            f"{text}/{node_type} holds {len(text_id)} vectors, needed {needed} as the "
            "graph counts texts; run `star export-text` on the tables the graph was built from"
        )
    vectors.check()
    return vectors


def _load_all(folder: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    return [_load(folder / f"{name}.npy") for name in names]


def _load(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.view(np.ndarray)  # Plain arrays: the map's own class slows every slice.
