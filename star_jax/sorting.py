"""Parquet tables through DuckDB, which joins and sorts out of core; results come in batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from star_jax.config import InputError
from star_jax.shapes import NO_TIME

_BATCH_ROWS = 1 << 18
_BUFFER_BYTES = 1 << 20
NO_TIME_SQL = f"CAST('{NO_TIME}' AS BIGINT)"


def check_limits(memory_limit_gib: float, num_threads: int) -> None:
    """Checks what a config asks of `session`.

    Raises:
      ValueError: There is too little of it.
    """
    if not memory_limit_gib >= 0.1:
        raise ValueError(f"memory_limit_gib is {memory_limit_gib}, needed at least 0.1")
    if num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}, needed at least 1")


@contextmanager
def session(
    scratch: Path, memory_limit_gib: float, num_threads: int | None, what: str
) -> Iterator[duckdb.DuckDBPyConnection]:
    """As `connect`; closed at the end.

    Args:
      scratch: As in `connect`.
      memory_limit_gib: As in `connect`.
      num_threads: As in `connect`.
      what: Is done, for the messages.

    Raises:
      InputError: The memory limit is too low, or a file or the disk gave out.
    """
    connection = connect(scratch, memory_limit_gib, num_threads)
    try:
        yield connection
    except duckdb.OutOfMemoryException as error:
        raise InputError(
            f"{what} does not fit memory_limit_gib {memory_limit_gib}; give more "
            f"({first_line(error)})"
        ) from error
    except (duckdb.IOException, duckdb.InvalidInputException, duckdb.BinderException) as error:
        raise InputError(f"{what}, reading the tables: {first_line(error)}") from error
    finally:
        connection.close()


def connect(
    scratch: Path, memory_limit_gib: float, num_threads: int | None
) -> duckdb.DuckDBPyConnection:
    """An empty database that spills to `scratch`, its own tables too.

    Args:
      scratch: Made when it is needed.
      memory_limit_gib: Beyond it everything is on disk.
      num_threads: None: one for every core.
    """
    settings: dict[str, Any] = {
        "memory_limit": f"{int(memory_limit_gib * 1024)}MiB",
        "temp_directory": str(scratch),
    }
    if num_threads is not None:
        settings["threads"] = num_threads
    connection = duckdb.connect(":memory:", config=settings)
    connection.execute("SET enable_progress_bar = false")
    return connection


def table_sql(path: Path) -> str:
    """A Parquet file as a table expression."""
    escaped = str(path).replace("'", "''")
    return f"read_parquet('{escaped}')"


def one_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple:
    """The only row of a query's result."""
    rows = connection.sql(query).fetchall()
    assert len(rows) == 1, f"{len(rows)} rows from {query}"
    return rows[0]


def batches(connection: duckdb.DuckDBPyConnection, query: str) -> Iterator[dict[str, np.ndarray]]:
    """Streams the result of a query, columns without nulls."""
    for batch in connection.sql(query).to_arrow_reader(_BATCH_ROWS):
        yield {
            name: column.to_numpy(zero_copy_only=False)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }


def parquet_batches(path: Path, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Streams columns of a Parquet file, a few pages at a time.

    Raises:
      InputError: The file lacks a column.
    """
    # Left to itself, pyarrow reads all that it will need of the file ahead of the first batch.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise InputError(f"{path} lacks the columns {missing}; run `star import`")
        yield from file.iter_batches(rows, columns=columns)


def first_line(error: Exception) -> str:
    """Of what DuckDB says, which may go on for pages."""
    return str(error).splitlines()[0]
