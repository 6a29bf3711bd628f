"""Versions of embeddings on disk, from arrays."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from star_jax import artefacts
from star_jax.embeddings.table import EmbeddingTable, write_shard
from star_jax.shapes import NO_TIME


class Side(NamedTuple):
    """Rows of one node type."""

    ids: list[str]
    vectors: np.ndarray
    t: list[int] | None = None


def write_version(
    folder: Path, tables: Mapping[str, Side], *, kind: str = "graph_embeddings", num_shards: int = 2
) -> Path:
    """An artefact with these rows, spread over shards."""
    with artefacts.writing(folder, kind) as partial:
        for name, side in tables.items():
            t = np.full(len(side.ids), NO_TIME) if side.t is None else np.array(side.t)
            rows = np.arange(len(side.ids), dtype=np.int32)
            for shard, own in enumerate(np.array_split(rows, num_shards)):
                vectors = side.vectors[own].astype(np.float32)
                table = EmbeddingTable(own, own, t[own], vectors)
                write_shard(partial / name, shard, [side.ids[i] for i in own], table)
        artefacts.set_meta(partial, {"name": folder.name})
    return folder


def drift(size: int, count: int, *, seed: int = 0, noise: float = 0.05, width: int = 8) -> Side:
    """Unit vectors of a version: a rotation, of its own by the seed, of what all versions share."""
    latent = np.random.default_rng(7).normal(size=(count, width))
    rng = np.random.default_rng(seed)
    mixed = latent @ np.linalg.qr(rng.normal(size=(size, width)))[0].T
    vectors = mixed + noise * rng.normal(size=(count, size))
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return Side([f"id{i}" for i in range(count)], (vectors / length).astype(np.float32))
