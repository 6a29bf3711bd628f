"""The node side of a graph: creation times, ids, features, text versions."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from star_jax.config import InputError
from star_jax.graph.arrays import ArrayFile, ColumnFiles, scratch_array
from star_jax.graph.schema import NodeType
from star_jax.shapes import NO_TIME
from star_jax.sorting import NO_TIME_SQL, batches, parquet_batches, table_sql

_BATCH_ROWS = 1 << 16
_CHUNK_NODES = 1 << 20
_ID_SCHEMA = pa.schema([("idx", pa.int32()), ("id", pa.string())])


class NodeRows(NamedTuple):
    """Nodes of one type, some of them or all, in the order of their indices."""

    ids: pa.Array
    time: Int[np.ndarray, " N"]
    categorical: Int[np.ndarray, "N columns"]
    dense: Float[np.ndarray, "N twice_columns"]


def write_nodes(folder: Path, node: NodeType, chunks: Iterable[NodeRows]) -> None:
    """Writes time, ids, categorical codes and standardised numbers of one node type.

    Args:
      folder: Of the node type.
      node: Its columns.
      chunks: All of its nodes, however many at a time: the files are the same.
    """
    folder.mkdir(parents=True)
    rows = node.count
    with (
        ArrayFile(folder / "time.npy", np.dtype(np.int64), (rows,)) as time,
        ArrayFile(
            folder / "categorical.npy", np.dtype(np.int32), (rows, len(node.categorical))
        ) as categorical,
        ArrayFile(folder / "dense.npy", np.dtype(np.float32), (rows, 2 * len(node.dense))) as dense,
        pq.ParquetWriter(folder / "ids.parquet", _ID_SCHEMA) as ids,
    ):
        waiting, first = pa.array([], pa.string()), 0
        for chunk in chunks:
            time.append(chunk.time)
            categorical.append(chunk.categorical)
            dense.append(chunk.dense)
            waiting = pa.concat_arrays([waiting, chunk.ids])
            while len(waiting) >= _BATCH_ROWS:  # Row groups of one size, whatever the chunks'.
                first = _write_ids(ids, waiting[:_BATCH_ROWS], first)
                waiting = waiting[_BATCH_ROWS:]
        _write_ids(ids, waiting, first)


def node_rows(
    table: Path, node: NodeType, stats: Mapping[str, tuple[float, float]], first: int
) -> Iterator[NodeRows]:
    """The nodes of a table, from index `first` to the last one of the type.

    A dense column becomes two: (x - mean) / deviation, 0 where missing, and a missing bit. All
    values come first, then all bits.

    Args:
      table: Parquet in the order of `idx`.
      node: Its columns.
      stats: Per dense column the mean and the standard deviation.
      first: Index of the table's first node.

    Raises:
      InputError: The table does not hold just these nodes, or a code that they may not have.
    """
    num_dense = len(node.dense)
    start = first
    for batch in _batches(table, ["idx", "id", "t", *_feature_columns(node)]):
        end = start + batch.num_rows
        if not np.array_equal(batch["idx"].to_numpy(), np.arange(start, end)):
            raise InputError(f"{table}: idx is not {first} .. n - 1 in order; run `star import`")
        if end > node.count:
            raise InputError(f"{table} has more than the {node.count} rows of its manifest")
        codes = np.zeros((end - start, len(node.categorical)), np.int32)
        for j, (column, cardinality) in enumerate(node.categorical.items()):
            codes[:, j] = _codes(table, batch[f"cat_{column}"], column, cardinality)
        values = np.zeros((end - start, 2 * num_dense))
        for j, column in enumerate(node.dense):
            raw = _floats(batch[f"dense_{column}"])
            mean, deviation = stats[column]
            missing = ~np.isfinite(raw)
            values[:, j] = np.where(missing, 0.0, (raw - mean) / deviation)
            values[:, num_dense + j] = missing
        yield NodeRows(batch["id"].cast(pa.string()), _times(batch["t"]), codes, values)
        start = end
    if start != node.count:
        raise InputError(f"{table} has {start} rows, needed {node.count} as in its manifest")


def ids_of(folder: Path) -> Iterator[pa.Array]:
    """The ids that `write_nodes` wrote, some at a time."""
    for batch in _batches(folder / "ids.parquet", ["id"]):
        yield batch["id"]


def text_rows(
    connection: duckdb.DuckDBPyConnection, table: Path, kind: str
) -> Iterator[dict[str, np.ndarray]]:
    """The texts of one kind in the order of the arrays: `entity`, `time`, `text`."""
    return batches(
        connection,
        f"SELECT entity, coalesce(t, {NO_TIME_SQL}) AS time, text_id AS text "
        f"FROM {_of_kind(table, kind)} ORDER BY entity, time, text_id",
    )


def write_texts(
    folder: Path, num_nodes: int, num_rows: int, rows: Iterable[dict[str, np.ndarray]]
) -> None:
    """Writes the arrays of `store.TextVersions` from rows as `text_rows` gives them."""
    dtypes = {"time": np.dtype(np.int64), "text": np.dtype(np.int32)}
    folder.mkdir(parents=True)
    scratch = folder / ".counts"  # A file: four bytes per node may be a lot.
    counts = scratch_array(scratch, np.dtype(np.int32), (num_nodes + 1,))
    with ColumnFiles(folder, dtypes, num_rows) as files:
        for columns in rows:
            files.append(columns)
            np.add.at(counts, columns["entity"] + 1, 1)
    before = 0
    with ArrayFile(folder / "bounds.npy", np.dtype(np.int32), (num_nodes + 1,)) as file:
        for first in range(0, num_nodes + 1, _CHUNK_NODES):
            bounds = before + np.cumsum(counts[first : first + _CHUNK_NODES], dtype=np.int64)
            file.append(bounds)
            before = int(bounds[-1])
    scratch.unlink()  # The map lives until the function ends.


def _of_kind(table: Path, kind: str) -> str:
    quoted = kind.replace("'", "''")
    return f"{table_sql(table)} WHERE kind = '{quoted}'"


def _write_ids(file: pq.ParquetWriter, ids: pa.Array, first: int) -> int:
    """Writes the next row group; returns the index after it."""
    end = first + len(ids)
    index = pa.array(np.arange(first, end, dtype=np.int32))
    if len(ids):
        file.write_batch(pa.record_batch([index, ids], schema=_ID_SCHEMA))
    return end


def statistics(
    table: Path, node: NodeType, train_end: int | None
) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of finite values; a constant column keeps deviation 1.

    Args:
      table: Parquet in the order of `idx`.
      node: Its columns.
      train_end: They are taken over nodes created up to then and nodes without a time; None: over
        all.
    """
    columns = [f"dense_{column}" for column in node.dense]
    count, total, square = (np.zeros(len(columns)) for _ in range(3))
    mean = np.zeros(len(columns))
    for centred in (False, True):  # Two passes: sums of squares about zero lose digits.
        count[:] = total[:] = square[:] = 0.0
        for batch in _batches(table, ["t", *columns]) if columns else ():
            seen = np.ones(batch.num_rows, np.bool_)
            if train_end is not None:
                seen = _times(batch["t"]) <= train_end
            for j, column in enumerate(columns):
                values = _floats(batch[column])
                values = values[seen & np.isfinite(values)] - mean[j]
                count[j] += len(values)
                total[j] += values.sum()
                square[j] += (values**2).sum()
        if not centred:
            mean = total / np.maximum(count, 1.0)
    deviation = np.sqrt(square / np.maximum(count, 1.0))
    deviation[deviation == 0.0] = 1.0
    return {column: (float(mean[j]), float(deviation[j])) for j, column in enumerate(node.dense)}


def _feature_columns(node: NodeType) -> list[str]:
    return [f"cat_{name}" for name in node.categorical] + [f"dense_{name}" for name in node.dense]


def _batches(table: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from parquet_batches(table, _BATCH_ROWS, columns)
    except pa.ArrowInvalid as error:
        raise InputError(f"{table}: {error}; run `star import`") from error


def _times(column: pa.Array) -> np.ndarray:
    return column.cast(pa.int64()).fill_null(NO_TIME).to_numpy(zero_copy_only=False)


def _floats(column: pa.Array) -> np.ndarray:
    values = column.cast(pa.float64()).fill_null(float("nan"))
    return values.to_numpy(zero_copy_only=False)


def _codes(table: Path, column: pa.Array, name: str, cardinality: int) -> np.ndarray:
    codes = column.to_numpy(zero_copy_only=False)
    if len(codes) and not (codes.min() >= 0 and codes.max() < cardinality):
        raise InputError(
            f"{table}:cat_{name} ranges over [{codes.min()}, {codes.max()}], "
            f"needed 0 to {cardinality - 1} as in the manifest"
        )
    return codes
