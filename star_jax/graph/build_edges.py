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

from star_jax.config import InputError
from star_jax.graph.arrays import ArrayFile, ColumnFiles, file_bytes, scratch_array
from star_jax.graph.samplers.search import row_sums
from star_jax.graph.schema import EdgeType, GraphSchema
from star_jax.graph.sorting import batches, one_row, parquet_batches, table_sql
from star_jax.graph.store import NOT_REMOVED, TIMED_BIT
from star_jax.graph.tally import TALLIED, tally
from star_jax.shapes import NO_TIME

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
_COLUMNS = ["sender", "receiver", "t", "removed_t", "weight", "split"]
_BATCH_ROWS = 1 << 16
_CHUNK_NODES = 1 << 20
_WIDE = 0.99
_log = logging.getLogger(__name__)


class Contents(NamedTuple):
    """What the edges of one relation are; without any, the smallest weight is above all."""

    num_edges: int
    num_removed: int
    smallest: float  # Weight.
    largest: float

    @property
    def is_weighted(self) -> bool:
        """Whether edges are not all equally likely to be drawn by weight."""
        return self.num_edges > 0 and (self.smallest < self.largest or self.largest <= 0)

    def joined(self, other: "Contents") -> "Contents":
        """Of both together."""
        return Contents(
            self.num_edges + other.num_edges,
            self.num_removed + other.num_removed,
            min(self.smallest, other.smallest),
            max(self.largest, other.largest),
        )


NO_EDGES = Contents(0, 0, math.inf, -math.inf)


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


def check_edges(
    connection: duckdb.DuckDBPyConnection,
    table: Path,
    edge: EdgeType,
    schema: GraphSchema,
    remedy: str,
) -> None:
    """Checks what the joins and the int32 indices rely on.

    Raises:
      InputError: An end, a split or a weight is out of range; ends with the remedy.
    """
    ends = " OR ".join(
        f"{column} IS NULL OR {column} NOT BETWEEN 0 AND {schema.nodes[node_type].count - 1}"
        for column, node_type in (("sender", edge.sender), ("receiver", edge.receiver))
    )
    wrong = {
        "a sender or receiver outside its nodes": ends,
        "a split other than 0 to 3": "split IS NULL OR split NOT BETWEEN 0 AND 3",
        "a weight that is no finite number of 0 or more": (
            "weight IS NULL OR NOT isfinite(weight) OR weight < 0"
        ),
    }
    counts = ", ".join(f"count(*) FILTER ({test})" for test in wrong.values())
    found = one_row(connection, f"SELECT {counts} FROM {table_sql(table)}")
    for count, problem in zip(found, wrong, strict=True):
        if count:
            raise InputError(f"{table}: {count} edges have {problem}; {remedy}")


def build_adjacency(
    connection: duckdb.DuckDBPyConnection,
    output: Path,
    receiver: str,
    schema: GraphSchema,
    edges: Mapping[str, Path],
    advance: Callable[[int], None],
) -> AdjacencySizes:
    """Writes the arrays of `store.Adjacency` for one receiver type, from the tables.

    An edge counts from the later of its own time and its sender's creation, the two things that
    must lie before an example's time; sorting by it makes the visible edges a prefix of the row,
    and leaves the prefix alone whatever the future holds.
    """
    relations = schema.into(receiver)
    found = [contents(connection, edges[_key(relation, schema)]) for relation in relations]
    rows = sorted_rows(connection, output, receiver, schema, edges)
    return write_adjacency(output, receiver, schema, found, rows, advance)


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


def contents(connection: duckdb.DuckDBPyConnection, table: Path) -> Contents:
    """What the edges of a table are."""
    sql = (
        "SELECT count(*), count(removed_t), coalesce(min(weight), 'inf'), "
        f"coalesce(max(weight), '-inf') FROM {table_sql(table)}"
    )
    return Contents(*one_row(connection, sql))


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
        if _key(relation, schema) not in edges:
            continue
        ends = ("sender", "receiver") if relation in schema.edges else ("receiver", "sender")
        created = np.load(output / "nodes" / relation.sender / "time.npy", mmap_mode="r")
        for batch in parquet_batches(edges[_key(relation, schema)], _BATCH_ROWS, _COLUMNS):
            sender = batch[ends[0]].to_numpy(zero_copy_only=False)
            times = _integers(batch["t"], NO_TIME)
            split = batch["split"].to_numpy(zero_copy_only=False).astype(np.uint8)
            timed = batch["t"].is_valid().to_numpy(zero_copy_only=False)
            columns = {
                "receiver": batch[ends[1]],
                "relation": np.full(len(sender), number),
                "sender": sender,
                "time": np.maximum(times, created[sender]),
                "removed": _integers(batch["removed_t"], NOT_REMOVED),
                "weight": batch["weight"],
                "flags": np.where(timed, split | TIMED_BIT, split),
            }
            arrays = [pa.array(columns[f.name]).cast(f.type) for f in _ROW_SCHEMA]
            yield pa.record_batch(arrays, schema=_ROW_SCHEMA)


def _integers(column: pa.Array, null: int) -> np.ndarray:
    return column.cast(pa.int64()).fill_null(null).to_numpy(zero_copy_only=False)


def _key(relation: EdgeType, schema: GraphSchema) -> str:
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
