"""Embedding tables on disk: shards of rows (Parquet) beside their vectors (npy).

One folder per node type, `rows-00000.parquet` and `vectors-00000.npy` for shard 0; the artefact
that holds the folders carries the manifest. Row order is the writer's: text tables are in the
order of `text_id`, so that row i is the text i. Narrower vectors of the same rows stand beside
them or in their place, `float16-00000.npy`, `int8-00000.npy` and so on, with the ranges that int8
and uint8 were quantised by in `ranges.npy` of the artefact; `keys-00000.npy` names the content that
each vector was made from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int32, Int64, Shaped

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.quantise import (
    RANGED,
    READABLE,
    Precision,
    check_ranges,
    dequantise,
    quantise,
)
from star_jax.embeddings.reuse import VectorFiles
from star_jax.shapes import NO_TIME

TEXT, GRAPH = "text_embeddings", "graph_embeddings"
"""Kinds of artefacts that hold the tables."""

RANGES = "ranges.npy"  # Of all node types together: they share one space.

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("entity", pa.int32(), nullable=False),
        pa.field("text_id", pa.int32(), nullable=False),
        pa.field("t", pa.int64()),
    ]
)


class TableRows(NamedTuple):
    """Rows of one node type, without their vectors."""

    entity: Int32[np.ndarray, " N"]  # Index of the node.
    text_id: Int32[np.ndarray, " N"]  # -1: the vector comes from no single text.
    t: Int64[np.ndarray, " N"]  # The vector holds from then on; NO_TIME: always.


class EmbeddingTable(NamedTuple):
    """Rows of one node type."""

    entity: Int32[np.ndarray, " N"]  # As in `TableRows`.
    text_id: Int32[np.ndarray, " N"]
    t: Int64[np.ndarray, " N"]
    vectors: Shaped[np.ndarray, "N E"]  # Of floats, or codes of a narrower precision.


class ArrayWriter:
    """Appends blocks of rows to an npy file whose size is known beforehand."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Opens the file; no more than a block is ever held in memory."""
        self._path, self._shape, self._dtype, self._rows = path, shape, dtype, 0
        self._file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(self._file, header | {"shape": shape})

    def append(self, block: Shaped[np.ndarray, "*_"]) -> None:
        """Writes the next rows."""
        if block.dtype != self._dtype or block.shape[1:] != self._shape[1:]:
            raise ValueError(
                f"{self._path} got rows of {block.dtype} {block.shape[1:]}, "
                f"needed {self._dtype} {self._shape[1:]}"
            )
        self._file.write(np.ascontiguousarray(block).tobytes())
        self._rows += len(block)

    def close(self, *, complete: bool) -> None:
        """Closes the file; checks that it holds what its header says if it is complete."""
        self._file.close()
        if complete and self._rows != self._shape[0]:
            raise ValueError(f"{self._path} got {self._rows} rows, needed {self._shape[0]}")


@contextmanager
def writing_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[ArrayWriter]:
    """Yields a writer of an npy file, block after block."""
    writer = ArrayWriter(path, shape, dtype)
    try:
        yield writer
    except BaseException:
        writer.close(complete=False)
        raise
    writer.close(complete=True)


def write_shard(
    folder: Path,
    shard: int,
    ids: list[str],
    table: EmbeddingTable,
    precision: Precision = "float32",
) -> None:
    """Writes one shard of a node type.

    Args:
      folder: Of the node type, inside the artefact being written.
      shard: Its number; shards follow each other without a gap.
      ids: The entities' own ids, one per row.
      table: The rows.
      precision: Of the vectors on disk; one that needs no ranges.
    """
    lengths = {"ids": len(ids)} | {name: len(column) for name, column in table._asdict().items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"columns of one shard differ in length: {lengths}")
    write_rows(folder, shard, ids, TableRows(*table[:-1]))
    stored = quantise(table.vectors, precision, None)
    np.save(array_path(folder, shard, precision), np.ascontiguousarray(stored))


def write_rows(folder: Path, shard: int, ids: list[str] | pa.Array, rows: TableRows) -> None:
    """Writes one shard without its vectors; as `write_shard`."""
    folder.mkdir(parents=True, exist_ok=True)
    time = pa.array(rows.t, mask=rows.t == NO_TIME)
    names = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string())
    columns = [names, rows.entity, rows.text_id, time]
    pq.write_table(pa.table(columns, schema=_SCHEMA), folder / f"rows-{shard:05d}.parquet")


def array_path(folder: Path, shard: int, precision: Precision) -> Path:
    """Where the vectors of a shard of a node type are."""
    name = "vectors" if precision == "float32" else precision
    return folder / f"{name}-{shard:05d}.npy"


def keys_path(folder: Path, shard: int) -> Path:
    """Where the content keys of a shard of a node type are."""
    return folder / f"keys-{shard:05d}.npy"


def read_table(
    folder: Path,
    node_type: str,
    *,
    precision: Precision = "float32",
    dequantised: bool = False,
) -> EmbeddingTable:
    """Reads all shards of a node type; the vectors of a single shard stay on disk until used.

    Args:
      folder: The artefact, e.g. `W/text_embeddings`.
      node_type: Which table of it.
      precision: Which of the vectors.
      dequantised: Gives float32 made from the codes.

    Raises:
      InputError: The node type has no table here, not in this precision, or a shard is broken.
    """
    shards = rows_paths(folder, node_type)
    found = [
        _vectors(array_path(path.parent, shard, precision), path)
        for shard, path in enumerate(shards)
    ]
    vectors = found[0] if len(found) == 1 else np.concatenate(found)
    if dequantised:
        ranges = read_ranges(folder / RANGES, vectors.shape[1]) if precision in RANGED else None
        vectors = dequantise(vectors, precision, ranges)
    return EmbeddingTable(*read_rows(folder, node_type), vectors=vectors)


def embeddings_kind(folder: Path) -> str:
    """Whether an artefact holds the embeddings of texts or of nodes: `TEXT` or `GRAPH`.

    Raises:
      InputError: It holds neither, or is not complete.
    """
    kind = artefacts.read_any(folder).kind
    if kind not in (TEXT, GRAPH):
        raise InputError(f"{folder} holds {kind}, needed {TEXT} or {GRAPH}")
    return kind


def node_types(folder: Path) -> list[str]:
    """Those that have a table in an artefact."""
    return sorted({path.parent.name for path in folder.glob("*/rows-*.parquet")})


def rows_paths(folder: Path, node_type: str) -> list[Path]:
    """The shards of a node type, without their vectors, in the order of `read_table`.

    Raises:
      InputError: There are none.
    """
    shards = sorted((folder / node_type).glob("rows-*.parquet"))
    if not shards:
        raise InputError(f"{folder} has no table of node type {node_type!r}")
    return shards


def read_rows(folder: Path, node_type: str) -> TableRows:
    """All rows of a node type, without their vectors.

    Raises:
      InputError: The node type has no table here.
    """
    table = read_columns(folder, node_type, *TableRows._fields)
    time = table["t"].combine_chunks().fill_null(NO_TIME)
    return TableRows(
        table["entity"].to_numpy(), table["text_id"].to_numpy(), time.to_numpy(zero_copy_only=False)
    )


def open_vectors(folder: Path, node_type: str, precision: Precision | None = None) -> VectorFiles:
    """The vectors of a node type, by the row of `read_table`; they stay on disk, and are float32.

    Args:
      folder: The artefact, e.g. `W/text_embeddings`.
      node_type: Which table of it.
      precision: Which of the vectors. None: those in float32 if there are such, else the next best.

    Raises:
      InputError: The node type has no table here, or not in this precision; vectors of the
        precision cannot be had back; or its first shard is broken.
    """
    shards = rows_paths(folder, node_type)
    if precision is None:
        precision = _best_precision(folder / node_type)
    if precision not in READABLE:
        raise InputError(
            f"precision {precision} keeps no sizes, needed one of {', '.join(READABLE)}"
        )
    num_rows = [pq.read_metadata(path).num_rows for path in shards]
    paths = [array_path(path.parent, shard, precision) for shard, path in enumerate(shards)]
    size = _vectors(paths[0], shards[0]).shape[1]
    ranges = read_ranges(folder / RANGES, size) if precision in RANGED else None
    return VectorFiles(paths, num_rows, size, precision, ranges)


def read_ids(folder: Path, node_type: str) -> list[str]:
    """The entities' own ids, in the order of `read_table`."""
    return read_columns(folder, node_type, "id")["id"].to_pylist()


def read_columns(folder: Path, node_type: str, *names: str) -> pa.Table:
    """Some of `id`, `entity`, `text_id` and `t` of a node type, in the order of `read_table`."""
    paths = rows_paths(folder, node_type)
    return pa.concat_tables([pq.read_table(path, columns=list(names)) for path in paths])


def read_ranges(path: Path, size: int) -> Float32[np.ndarray, "2 E"]:
    """The ranges that vectors of a size were, or are to be, quantised by.

    Raises:
      InputError: The file is missing or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing, needed for int8 and uint8")
    ranges = np.load(path)
    check_ranges(ranges, size, path)
    return ranges


def _best_precision(folder: Path) -> Precision:
    """The best of a node type's that can be read; float32 where there is none."""
    for precision in READABLE:
        if array_path(folder, 0, precision).is_file():
            return precision
    return "float32"


def _vectors(path: Path, rows_path: Path) -> Shaped[np.ndarray, "N E"]:
    if not path.is_file():
        beside = rows_path.with_suffix(".npy").name.replace("rows-", "*-")
        others = sorted(other.name for other in path.parent.glob(beside))
        raise InputError(
            f"{path} is missing, needed beside {rows_path.name}; "
            f"there are {', '.join(others) or 'no vectors'}"
        )
    vectors, num_rows = np.load(path, mmap_mode="r"), pq.read_metadata(rows_path).num_rows
    if vectors.ndim != 2 or len(vectors) != num_rows:
        raise InputError(
            f"{path} has shape {vectors.shape}, needed {num_rows} rows as in {rows_path.name}"
        )
    return vectors
