"""The edge side of a graph: for every node type, all edges into it, node-major and by time."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Int

from star_jax.config import InputError
from star_jax.graph.arrays import ArrayFile, ColumnFiles, file_bytes, scratch_array
from star_jax.graph.build_survey import Contents
from star_jax.graph.samplers.search import row_sums
from star_jax.graph.schema import EdgeType, GraphSchema
from star_jax.graph.store import NOT_REMOVED, TIMED_BIT
from star_jax.graph.tally import TALLIED, tally
from star_jax.shapes import NO_TIME
from star_jax.sorting import batches, parquet_batches

_MAX_EDGES = 2**31 - 1
_DTYPES = {
    "sender": np.dtype(np.int32),
    "time": np.dtype(np.int64),
    "removed": np.dtype(np.int64),
    "weight": np.dtype(np.float32),
    "cumulative": np.dtype(np.float64),
    "flags": np.dtype(np.uint8),
}
_ROW_SCHEMA = pa.schema(
    [
        ("receiver", pa.int32()),
        ("relation", pa.int32()),
        ("sender", pa.int32()),
        ("time", pa.int64()),
        ("removed", pa.int64()),
        ("weight", pa.float32()),
        ("flags", pa.uint8()),
    ]
)
_ORDER = "receiver, relation, time, sender, removed, weight, flags"
EDGE_COLUMNS = ["sender", "receiver", "t", "removed_t", "weight", "split"]
_BATCH_ROWS = 1 << 16
_CHUNK_NODES = 1 << 20
_WIDE = 0.99
_log = logging.getLogger(__name__)


class AdjacencySizes(NamedTuple):
    """Per edge key into one node type."""

    num_edges: dict[str, int]
    wide_degree: dict[str, int]  # 99th percentile of the degrees above zero; 0 without edges.
    max_degree: dict[str, int]
    traits: dict[str, int]  # As in `store.GraphMeta`.


def all_sizes(parts: Iterable[AdjacencySizes]) -> AdjacencySizes:
    """Of the edges into every node type together."""
    joined = AdjacencySizes({}, {}, {}, {})
    for part in parts:
        for whole, own in zip(joined, part, strict=True):
            whole.update(own)
    return joined


def sorted_rows(
    connection: duckdb.DuckDBPyConnection,
    output: Path,
    receiver: str,
    schema: GraphSchema,
    edges: Mapping[str, Path],
) -> Iterator[dict[str, np.ndarray]]:
    """The edges of the tables into one node type, in the order of the arrays.

    Args:
      connection: Sorts them, and does nothing else: joins take memory that grows with the nodes.
      output: The graph's folder, with the creation times of every sender.
      receiver: The node type.
      schema: Of the graph.
      edges: Tables by edge key; relations without one are left out.
    """
    rows = pa.RecordBatchReader.from_batches(
        _ROW_SCHEMA, _unsorted_rows(output, receiver, schema, edges)
    )
    connection.register("unsorted", rows)
    yield from batches(connection, f"SELECT * FROM unsorted ORDER BY {_ORDER}")
    connection.unregister("unsorted")


def write_adjacency(
    output: Path,
    receiver: str,
    schema: GraphSchema,
    found: list[Contents],
    rows: Iterable[dict[str, np.ndarray]],
    advance: Callable[[int], None],
) -> AdjacencySizes:
    """Writes the arrays of one receiver type.

    Args:
      output: The graph's folder.
      receiver: The node type.
      schema: Of the graph.
      found: What the edges of every relation into the type are.
      rows: As `sorted_rows` gives them.
      advance: Told how many edges were written.

    Raises:
      InputError: There are more edges than int32 counts.
    """
    start = time.monotonic()
    relations = schema.into(receiver)
    total = sum(each.num_edges for each in found)
    if total > _MAX_EDGES:
        raise InputError(
            f"{total} edges point to nodes of type {receiver!r}, needed at most {_MAX_EDGES} "
            "(offsets are int32): import fewer relations or a shorter window"
        )
    lengths = _lengths(found)
    dtypes = {name: dtype for name, dtype in _DTYPES.items() if lengths[name] == total}
    shape = (schema.nodes[receiver].count, len(relations))
    folder = output / "edges" / receiver
    folder.mkdir(parents=True)
    scratch = folder / ".degrees"  # A file: four bytes per node and relation may be a lot.
    degrees = scratch_array(scratch, np.dtype(np.int32), shape)
    traits = np.zeros(len(relations), np.uint8)
    for name in _DTYPES.keys() - dtypes:
        np.save(folder / f"{name}.npy", np.zeros(0, _DTYPES[name]))
    if "cumulative" in dtypes:
        rows = _with_sums(rows, len(relations))
    with ColumnFiles(folder, dtypes, total) as files:
        for columns in rows:
            files.append(columns)
            advance(len(columns["receiver"]))
            tally(*(columns[name] for name in TALLIED), degrees, traits)
    _write_bounds(folder, degrees)
    scratch.unlink(missing_ok=True)  # The map lives until the function ends.
    seconds = time.monotonic() - start
    _log.info("edges into %s: %d of %d relations, %.1f s", receiver, total, len(relations), seconds)
    sizes = AdjacencySizes({}, {}, {}, {})
    for j, edge in enumerate(relations):
        own = (*_sizes(degrees[:, j]), int(traits[j]))
        for found_sizes, size in zip(sizes, own, strict=True):
            found_sizes[edge.key] = size
    return sizes


def adjacency_bytes(found: list[Contents], num_nodes: int) -> int:
    """Bytes that `write_adjacency` takes on disk."""
    columns = (file_bytes(_DTYPES[name], (length,)) for name, length in _lengths(found).items())
    return sum(columns) + file_bytes(np.dtype(np.int32), (num_nodes, len(found) + 1))


def _lengths(found: list[Contents]) -> dict[str, int]:
    """Of every column; one that would say the same of all edges is empty."""
    total = sum(each.num_edges for each in found)
    lengths = dict.fromkeys(_DTYPES, total)
    if not any(each.num_removed for each in found):
        lengths["removed"] = 0
    if not any(each.is_weighted for each in found):
        lengths["cumulative"] = 0
    return lengths


def _with_sums(
    chunks: Iterable[dict[str, np.ndarray]], num_relations: int
) -> Iterator[dict[str, np.ndarray]]:
    """Adds the column `cumulative`; a row may go on in the next chunk.

    Every sum is made from its own row alone, edge by edge: an edge that comes later, there or
    elsewhere, does not change its last bit.
    """
    row, total = -1, 0.0
    for columns in chunks:
        rows = columns["receiver"].astype(np.int64) * num_relations + columns["relation"]
        sums, row, total = row_sums(rows, columns["weight"].astype(np.float64), row, total)
        yield columns | {"cumulative": sums}


def _unsorted_rows(
    output: Path, receiver: str, schema: GraphSchema, edges: Mapping[str, Path]
) -> Iterator[pa.RecordBatch]:
    """All relations as the receiver sees them; a reverse relation swaps the ends."""
    for number, relation in enumerate(schema.into(receiver)):
        key = table_key(relation, schema)
        if key not in edges:
            continue
        created = created_by(output, relation)
        for batch in parquet_batches(edges[key], _BATCH_ROWS, EDGE_COLUMNS):
            columns = edge_rows(batch, relation, number, schema, created)
            arrays = [pa.array(columns[f.name]).cast(f.type) for f in _ROW_SCHEMA]
            yield pa.record_batch(arrays, schema=_ROW_SCHEMA)


def created_by(output: Path, relation: EdgeType) -> Int[np.ndarray, " N"]:
    """When the senders of a relation were created, from the graph's folder."""
    return np.load(output / "nodes" / relation.sender / "time.npy", mmap_mode="r")


def edge_rows(
    batch: pa.RecordBatch,
    relation: EdgeType,
    number: int,
    schema: GraphSchema,
    created: Int[np.ndarray, " N"],
) -> dict[str, np.ndarray]:
    """Edges of a table as the receiver sees them; a reverse relation swaps the ends.

    An edge counts from the later of its own time and its sender's creation, the two things that
    must lie before an example's time; sorting by it makes the visible edges a prefix of the row,
    and leaves the prefix alone whatever the future holds.

    Args:
      batch: Columns `EDGE_COLUMNS`.
      relation: Or its reverse, whose table it is.
      number: Of the relation among those into its receiver.
      schema: Of the graph.
      created: As `created_by` gives it.
    """
    names = ("sender", "receiver", "weight", "split")
    sender, receiver, weight, split = (batch[n].to_numpy(zero_copy_only=False) for n in names)
    if relation not in schema.edges:
        sender, receiver = receiver, sender
    split = split.astype(np.uint8)
    timed = batch["t"].is_valid().to_numpy(zero_copy_only=False)
    return {
        "receiver": receiver,
        "relation": np.full(len(sender), number),
        "sender": sender,
        "time": np.maximum(_integers(batch["t"], NO_TIME), created[sender]),
        "removed": _integers(batch["removed_t"], NOT_REMOVED),
        "weight": weight,
        "flags": np.where(timed, split | TIMED_BIT, split),
    }


def _integers(column: pa.Array, null: int) -> np.ndarray:
    return column.cast(pa.int64()).fill_null(null).to_numpy(zero_copy_only=False)


def table_key(relation: EdgeType, schema: GraphSchema) -> str:
    """Of the table that a relation's edges are in."""
    return (relation if relation in schema.edges else relation.reverse).key


def _write_bounds(folder: Path, degrees: np.ndarray) -> None:
    """Running totals, row after row; the last bound of a node is the first of the next."""
    num_nodes, num_relations = degrees.shape
    shape = (num_nodes, num_relations + 1)
    before = 0
    with ArrayFile(folder / "bounds.npy", np.dtype(np.int32), shape) as file:
        for first in range(0, num_nodes, _CHUNK_NODES):
            chunk = degrees[first : first + _CHUNK_NODES]
            bounds = np.zeros((len(chunk), num_relations + 1), np.int64)
            if num_relations:
                ends = before + np.cumsum(chunk.reshape(-1), dtype=np.int64).reshape(chunk.shape)
                bounds[:, 1:] = ends
                bounds[0, 0], bounds[1:, 0] = before, ends[:-1, -1]
                before = int(ends[-1, -1])
            file.append(bounds)


def _sizes(degrees: np.ndarray) -> tuple[int, int, int]:
    """One entry of each field of `AdjacencySizes`, from the degrees of one relation."""
    counts: Counter[int] = Counter()
    for first in range(0, len(degrees), _CHUNK_NODES):
        found = np.unique_counts(degrees[first : first + _CHUNK_NODES])
        counts.update(dict(zip(found.values.tolist(), found.counts.tolist(), strict=True)))
    del counts[0]
    values = sorted(counts)
    upto = np.cumsum([counts[value] for value in values])
    total = sum(value * count for value, count in counts.items())
    if not values:
        return 0, 0, 0
    place = math.ceil(_WIDE * (int(upto[-1]) - 1))  # Of the nodes with edges, by their degrees.
    return total, values[int(np.searchsorted(upto, place, side="right"))], values[-1]
