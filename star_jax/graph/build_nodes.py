"""The node side of a graph: creation times, ids, features, text versions."""

import logging
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from star_jax.config import InputError
from star_jax.graph.arrays import ArrayFile, ColumnFiles
from star_jax.graph.schema import NodeType
from star_jax.graph.sorting import NO_TIME_SQL, batches, one_row, table_sql
from star_jax.shapes import NO_TIME

_BATCH_ROWS = 1 << 16
_ID_SCHEMA = pa.schema([("idx", pa.int32()), ("id", pa.string())])
_log = logging.getLogger(__name__)


def build_nodes(
    folder: Path, table: Path, name: str, node: NodeType, train_end: int | None
) -> dict[str, tuple[float, float]]:
    """Writes time, ids, categorical codes and standardised numbers of one node type.

    A dense column becomes two: (x - mean) / deviation, 0 where missing, and a missing bit. All
    values come first, then all bits.

    Args:
      folder: Of the node type.
      table: Parquet in the order of `idx`.
      name: Of the node type, for messages.
      node: Its columns.
      train_end: Statistics are taken over nodes created up to then and nodes without a time;
        None: over all.

    Returns:
      Per dense column the mean and the standard deviation that were used.
    """
    folder.mkdir(parents=True)
    stats = _statistics(table, node, train_end)
    rows, num_dense = node.count, len(node.dense)
    start = 0
    with (
        ArrayFile(folder / "time.npy", np.dtype(np.int64), (rows,)) as time,
        ArrayFile(
            folder / "categorical.npy", np.dtype(np.int32), (rows, len(node.categorical))
        ) as categorical,
        ArrayFile(folder / "dense.npy", np.dtype(np.float32), (rows, 2 * num_dense)) as dense,
        pq.ParquetWriter(folder / "ids.parquet", _ID_SCHEMA) as ids,
    ):
        for batch in _batches(table, ["idx", "id", "t", *_feature_columns(node)]):
            end = start + batch.num_rows
            if not np.array_equal(batch["idx"].to_numpy(), np.arange(start, end)):
                raise InputError(f"{table}: idx is not 0 .. n - 1 in order; run `star import`")
            if end > rows:
                raise InputError(f"{table} has more than the {rows} rows of its manifest")
            ids.write_batch(pa.record_batch([batch["idx"], batch["id"]], schema=_ID_SCHEMA))
            time.append(_times(batch["t"]))
            codes = np.zeros((end - start, len(node.categorical)), np.int32)
            for j, (column, cardinality) in enumerate(node.categorical.items()):
                codes[:, j] = _codes(table, batch[f"cat_{column}"], column, cardinality)
            categorical.append(codes)
            values = np.zeros((end - start, 2 * num_dense))
            for j, column in enumerate(node.dense):
                raw = _floats(batch[f"dense_{column}"])
                mean, deviation = stats[column]
                missing = ~np.isfinite(raw)
                values[:, j] = np.where(missing, 0.0, (raw - mean) / deviation)
                values[:, num_dense + j] = missing
            dense.append(values)
            start = end
        if start != rows:
            raise InputError(f"{table} has {start} rows, needed {rows} as in its manifest")
    _log.info("nodes %s: %d", name, rows)
    return stats


def build_texts(
    connection: duckdb.DuckDBPyConnection, folder: Path, table: Path, kind: str, num_nodes: int
) -> int:
    """Writes the text versions of one kind by (node, time); returns how many texts there are."""
    source = table_sql(table)
    quoted = kind.replace("'", "''")
    selected = f"{source} WHERE kind = '{quoted}'"
    num_texts, bad = one_row(
        connection,
        f"SELECT count(*), count(*) FILTER (entity IS NULL OR entity NOT BETWEEN 0 AND "
        f"{num_nodes - 1}) FROM {source}",
    )
    if bad:
        raise InputError(f"{table}: {bad} texts belong to no node; run `star import`")
    (num_rows,) = one_row(connection, f"SELECT count(*) FROM {selected}")
    dtypes = {"time": np.dtype(np.int64), "text": np.dtype(np.int32)}
    counts = np.zeros(num_nodes + 1, np.int64)
    query = (
        f"SELECT entity, coalesce(t, {NO_TIME_SQL}) AS time, text_id AS text FROM {selected} "
        "ORDER BY entity, time, text_id"
    )
    with ColumnFiles(folder, dtypes, num_rows) as files:
        for columns in batches(connection, query):
            files.append(columns)
            np.add.at(counts, columns["entity"] + 1, 1)
    np.save(folder / "bounds.npy", np.cumsum(counts).astype(np.int32))
    return num_texts


def _statistics(
    table: Path, node: NodeType, train_end: int | None
) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of finite values; a constant column keeps deviation 1."""
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
        with pq.ParquetFile(table) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise InputError(f"{table} lacks the columns {missing}; run `star import`")
            yield from file.iter_batches(_BATCH_ROWS, columns=columns)
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
