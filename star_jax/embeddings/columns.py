"""Embeddings as Parquet: a vector is a fixed number of bytes, which any reader hands over whole.

Columns: `id` (string), `version` (string), `event_time` (int64, null: the vector holds always),
`vector` (fixed-size binary: the numbers one after the other, little-endian; null where an id was
asked for that has none). The file's metadata holds under the key `star_jax` a JSON object with
`dtype` and `size` of the vectors and the `version` of all rows. `decode_vectors` makes an array of
such a column, from whatever read it; so does, without this package,

    np.frombuffer(b"".join(column), "<f4").reshape(-1, size)
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64, Shaped

from star_jax.config import InputError
from star_jax.shapes import NO_TIME

_META = b"star_jax"
_OPTIONS: dict[str, Any] = {  # Vectors hardly shrink, and whoever reads them would wait.
    "compression": {"id": "zstd", "version": "zstd", "event_time": "zstd", "vector": "none"},
    "use_dictionary": ["version"],
    "write_statistics": ["id", "event_time"],
}


class Rows(NamedTuple):
    """Some rows of a table, in order."""

    ids: pa.Array  # Of strings.
    event_time: Int64[np.ndarray, " N"]  # NO_TIME: always.
    vectors: Shaped[np.ndarray, "N E"]
    found: Bool[np.ndarray, " N"]  # False: there is no such id, and no vector.


def write_parquet(path: Path, version: str, size: int, dtype: str, blocks: Iterable[Rows]) -> int:
    """Writes blocks of rows, each as a row group; returns how many rows.

    Args:
      path: The file; its bytes depend on the arguments alone.
      version: Of all rows.
      size: Numbers in a vector.
      dtype: That they are stored as, little-endian: "<f4".
      blocks: One is in memory at a time.
    """
    vector = pa.binary(size * np.dtype(dtype).itemsize)
    schema = pa.schema(
        [
            pa.field("id", pa.large_string(), nullable=False),
            pa.field("version", pa.string(), nullable=False),
            pa.field("event_time", pa.int64()),
            pa.field("vector", vector),
        ],
        {_META: json.dumps({"dtype": dtype, "size": size, "version": version}).encode()},
    )
    total = 0
    with pq.ParquetWriter(path, schema, **_OPTIONS) as writer:
        for rows in blocks:
            number = len(rows.ids)
            content = pa.py_buffer(np.ascontiguousarray(rows.vectors, dtype))
            holes = pa.array(rows.found).buffers()[1] if not rows.found.all() else None
            columns = [
                rows.ids.cast(pa.large_string()),
                pa.repeat(version, number),
                pa.array(rows.event_time, mask=rows.event_time == NO_TIME),
                pa.FixedSizeBinaryArray.from_buffers(vector, number, [holes, content]),
            ]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=max(number, 1))
            total += number
    return total


def read_meta(path: Path) -> dict[str, Any]:
    """`dtype`, `size` and `version` of a file of `write_parquet`.

    Raises:
      InputError: It is none.
    """
    meta = pq.read_schema(path).metadata or {}
    if _META not in meta:
        raise InputError(f"{path} has no {_META.decode()} in its metadata, needed a published file")
    return json.loads(meta[_META])


def decode_vectors(column: Any, size: int, dtype: str) -> Shaped[np.ndarray, "N E"]:
    """The vectors of a column, none of them null.

    Args:
      column: A column of pyarrow or of a frame of Polars, an array or series of `bytes` as DuckDB
        and pandas give them, or a list of `bytes`. Nothing is copied of a pyarrow column of
        fixed-size binary in one piece.
      size: Numbers in a vector, as in the file's metadata.
      dtype: Their type, as in the file's metadata.

    Raises:
      ValueError: There are nulls, or values of another length.
    """
    width = size * np.dtype(dtype).itemsize
    if hasattr(column, "to_arrow"):  # Of Polars.
        column = column.to_arrow()
    if isinstance(column, pa.ChunkedArray):
        pieces = [_of_arrow(piece, width) for piece in column.chunks]
        content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    elif isinstance(column, pa.Array):
        content = _of_arrow(column, width)
    else:
        content = b"".join(_checked(list(column), width))
    return np.frombuffer(content, dtype).reshape(-1, size)


def _of_arrow(column: Any, width: int) -> Any:
    if column.null_count:
        raise ValueError(f"{column.null_count} of {len(column)} vectors are null")
    if pa.types.is_fixed_size_binary(column.type):
        found, first = {column.type.byte_width}, column.offset * column.type.byte_width
    else:  # Bytes of any length follow each other: between offsets, of int64 after the cast.
        column = column.cast(pa.large_binary())
        ends = np.frombuffer(column.buffers()[1], np.int64, len(column) + 1, 8 * column.offset)
        found, first = set(np.diff(ends).tolist()), int(ends[0])
    if found - {width}:
        raise ValueError(f"vectors of {min(found - {width})} bytes, needed {width}")
    return memoryview(column.buffers()[-1])[first : first + len(column) * width]


def _checked(values: list[Any], width: int) -> list[Any]:
    for value in values:
        if not isinstance(value, bytes | bytearray) or len(value) != width:
            found = f"{value!r}" if value is None else f"{len(value)} bytes"
            raise ValueError(f"a vector is {found}, needed {width} bytes")
    return values
