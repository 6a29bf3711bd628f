"""Embedding tables on disk: shards of rows (Parquet) beside their vectors (npy).

One folder per node type, `rows-00000.parquet` and `vectors-00000.npy` for shard 0; the artefact
that holds the folders carries the manifest. Row order is the writer's: text tables are in the
order of `text_id`, so that row i is the text i.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int32, Int64

from star_jax.config import InputError
from star_jax.shapes import NO_TIME

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("entity", pa.int32(), nullable=False),
        pa.field("text_id", pa.int32(), nullable=False),
        pa.field("t", pa.int64()),
    ]
)


class EmbeddingTable(NamedTuple):
    """Rows of one node type."""

    entity: Int32[np.ndarray, " N"]  # Index of the node.
    text_id: Int32[np.ndarray, " N"]  # -1: the vector comes from no single text.
    t: Int64[np.ndarray, " N"]  # The vector holds from then on; NO_TIME: always.
    vectors: Float[np.ndarray, "N E"]


def write_shard(folder: Path, shard: int, ids: list[str], table: EmbeddingTable) -> None:
    """Writes one shard of a node type.

    Args:
      folder: Of the node type, inside the artefact being written.
      shard: Its number; shards follow each other without a gap.
      ids: The entities' own ids, one per row.
      table: The rows.
    """
    lengths = {"ids": len(ids)} | {name: len(column) for name, column in table._asdict().items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"columns of one shard differ in length: {lengths}")
    folder.mkdir(parents=True, exist_ok=True)
    time = pa.array(table.t, mask=table.t == NO_TIME)
    rows = pa.table([pa.array(ids, pa.string()), table.entity, table.text_id, time], schema=_SCHEMA)
    pq.write_table(rows, folder / f"rows-{shard:05d}.parquet")
    np.save(folder / f"vectors-{shard:05d}.npy", np.ascontiguousarray(table.vectors))


def read_table(folder: Path, node_type: str) -> EmbeddingTable:
    """Reads all shards of a node type; the vectors of a single shard stay on disk until used.

    Args:
      folder: The artefact, e.g. `W/text_embeddings`.
      node_type: Which table of it.

    Raises:
      InputError: The node type has no table here, or a shard is broken.
    """
    shards = sorted((folder / node_type).glob("rows-*.parquet"))
    if not shards:
        raise InputError(f"{folder} has no table of node type {node_type!r}")
    rows = [pq.read_table(path) for path in shards]
    vectors = [_vectors(path, len(table)) for path, table in zip(shards, rows, strict=True)]
    joined = pa.concat_tables(rows)
    time = joined["t"].combine_chunks()
    return EmbeddingTable(
        entity=joined["entity"].to_numpy(),
        text_id=joined["text_id"].to_numpy(),
        t=time.fill_null(NO_TIME).to_numpy(zero_copy_only=False),
        vectors=vectors[0] if len(vectors) == 1 else np.concatenate(vectors),
    )


def read_ids(folder: Path, node_type: str) -> list[str]:
    """The entities' own ids, in the order of `read_table`."""
    shards = sorted((folder / node_type).glob("rows-*.parquet"))
    if not shards:
        raise InputError(f"{folder} has no table of node type {node_type!r}")
    return [
        name for path in shards for name in pq.read_table(path, columns=["id"])["id"].to_pylist()
    ]


def _vectors(rows_path: Path, num_rows: int) -> np.ndarray:
    path = rows_path.with_name(rows_path.name.replace("rows-", "vectors-")).with_suffix(".npy")
    if not path.is_file():
        raise InputError(f"{path} is missing, needed beside {rows_path.name}")
    vectors = np.load(path, mmap_mode="r")
    if vectors.ndim != 2 or len(vectors) != num_rows:
        raise InputError(
            f"{path} has shape {vectors.shape}, needed {num_rows} rows as in {rows_path.name}"
        )
    return vectors
