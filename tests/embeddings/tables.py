"""Small artefacts of embeddings whose rows are easy to look up by hand."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from star_jax import artefacts
from star_jax.embeddings.table import EmbeddingTable, write_shard
from star_jax.shapes import NO_TIME


class Row(NamedTuple):
    """One row of a table."""

    id: str
    t: int
    vector: np.ndarray


def make_rows(number: int, size: int = 4, seed: int = 0) -> list[Row]:
    """About two rows per id, of random times, some of them without a time."""
    rng = np.random.default_rng(seed)
    times = np.where(rng.random(number) < 0.3, NO_TIME, rng.integers(-5, 6, number))
    names = [
        f"n{i}" if i % 3 else f"ü/{'x' * (i % 40)}{i}" for i in rng.integers(0, number // 2, number)
    ]
    vectors = rng.normal(size=(number, size)).astype(np.float32)
    return [Row(*row) for row in zip(names, times.tolist(), vectors, strict=True)]


def write(folder: Path, tables: dict[str, list[Row]], num_shards: int = 3, **meta: object) -> Path:
    """Writes an artefact with a table per node type."""
    with artefacts.writing(folder, "graph_embeddings") as partial:
        for node_type, rows in tables.items():
            for shard, part in enumerate(np.array_split(np.arange(len(rows)), num_shards)):
                own = [rows[i] for i in part]
                table = EmbeddingTable(
                    part.astype(np.int32),
                    np.full(len(own), -1, np.int32),
                    np.array([row.t for row in own], np.int64),
                    np.array([row.vector for row in own], np.float32).reshape(len(own), -1)
                    if own
                    else np.zeros((0, 4), np.float32),
                )
                write_shard(partial / node_type, shard, [row.id for row in own], table)
        artefacts.set_meta(partial, {"embedding_size": 4} | meta)
    return folder


def last(rows: list[Row], name: str, time: int | None) -> Row | None:
    """The definition: the last row of an id that is not younger."""
    found = None
    for row in rows:
        fits = row.id == name and (time is None or row.t <= time)
        if fits and (found is None or row.t >= found.t):
            found = row
    return found


def found(rows: list[Row], name: str, time: int | None = None) -> Row:
    """As `last`, of an id that has one."""
    row = last(rows, name, time)
    assert row is not None
    return row
