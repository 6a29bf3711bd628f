"""Published embeddings: files by node type and by partition of the ids, Parquet or ArrayRecord.

    DIR/member/part-00003-of-00016.parquet

An id is in the partition that the first four bytes of its SHA-256 name, as an unsigned big-endian
number modulo the number of partitions. In DuckDB, `('0x' || sha256(id)[1:8])::UINTEGER % 16`.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Int64

from star_jax.embeddings.columns import Rows, write_parquet
from star_jax.embeddings.reader import EmbeddingReader
from star_jax.embeddings.records import Record, encode_row

Format = Literal["parquet", "arrayrecord"]
SUFFIXES: dict[str, str] = {"parquet": ".parquet", "arrayrecord": ".array_record"}
BLOCK_ROWS = 1 << 15
"""Rows in memory at a time, and in a row group of Parquet."""


def partitions_of(names: Sequence[str], partitions: int) -> Int64[np.ndarray, " N"]:
    """The partition of each id."""
    digests = b"".join(hashlib.sha256(name.encode()).digest()[:4] for name in names)
    return np.frombuffer(digests, ">u4").astype(np.int64) % partitions


def part_name(partition: int, partitions: int, form: Format) -> str:
    """File of a partition."""
    return f"part-{partition:05d}-of-{partitions:05d}{SUFFIXES[form]}"


def write_rows(
    path: Path, reader: EmbeddingReader, blocks: Iterable[Rows], form: Format, dtype: str
) -> int:
    """Writes a file of rows; returns how many.

    Args:
      path: The file.
      reader: That the rows come from.
      blocks: Of rows.
      form: Of the file: `star_jax.embeddings.columns`, or records of `encode_row`.
      dtype: Of the vectors, little-endian: "<f4" or "<f2".
    """
    if form == "parquet":
        return write_parquet(path, reader.version, reader.size, dtype, blocks)
    number = 0
    try:
        writer: Any = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for block in blocks:
            for name, record in records_of(block, reader.version, dtype):
                writer.write(encode_row(name, record))
                number += 1
        writer.close()
    except RuntimeError as error:  # What the writer makes of every failure of the file system.
        raise OSError(f"{path}: {error}") from error
    return number


def records_of(block: Rows, version: str, dtype: str) -> list[tuple[str, Record]]:
    """Id and record of each row; an id that was not found is a deletion of no time."""
    vectors = block.vectors.astype(dtype)
    rows = zip(block.ids.to_pylist(), block.event_time.tolist(), vectors, block.found, strict=True)
    return [
        (name, Record(version, time, vector if found else None))
        for name, time, vector, found in rows
    ]
