"""Two versions of embeddings, their rows addressed by the nodes or texts of one W/tables."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int, Int64, Shaped

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.id_index import rows_among
from star_jax.embeddings.reuse import VectorFiles
from star_jax.embeddings.table import (
    GRAPH,
    embeddings_kind,
    node_types,
    open_vectors,
    read_columns,
)
from star_jax.embeddings.transforms.transform import Transform
from star_jax.pipeline.tables.read import PairTable, Ranking, read_nodes, read_texts

Role = Literal["sender", "receiver"]
_BLOCK_ROWS = 8192


class Ends(NamedTuple):
    """Which rows of which tables some examples are made of: one end of a node, two of a pair.

    A key is a node of W/tables for graph embeddings and a text of it for text embeddings; -1: none.
    """

    tables: tuple[str, ...]
    keys: tuple[Int[np.ndarray, " B"], ...]

    def take(self, rows: Shaped[np.ndarray, " C"] | slice) -> "Ends":
        """Those examples alone, by index, mask or slice."""
        return Ends(self.tables, tuple(keys[rows] for keys in self.keys))


class _Table(NamedTuple):
    row: Int64[np.ndarray, " N"]  # By key; -1 where this version has none.
    vectors: VectorFiles


class Version:
    """Embeddings of one version, through a transform if there is one.

    Attributes:
      kind: Of the artefact: of nodes or of texts.
      digest: Of the artefact.
      sizes: Width of the vectors, by table, before the transform.
    """

    def __init__(self, folder: Path, tables: Path) -> None:
        """Opens the tables of a folder; vectors stay on disk.

        Raises:
          InputError: The folder holds no embeddings, or texts of other tables than these.
        """
        self.kind = embeddings_kind(folder)
        self.digest = artefacts.digest(folder)
        self._tables = {name: _read(folder, self.kind, name, tables) for name in node_types(folder)}
        self.sizes = {name: table.vectors.size for name, table in self._tables.items()}
        self._transform: Transform | None = None

    def through(self, transform: Transform) -> "Version":
        """The same rows, mapped when they are read."""
        mapped = copy.copy(self)
        mapped._transform = transform
        return mapped

    def table_of(self, node_type: str, role: Role) -> str | None:
        """The table of a node type in a role, as `star export-graph` names it; None: not here."""
        of_role = f"{node_type}.{role}"
        found = of_role if of_role in self._tables else node_type
        return found if found in self._tables else None

    def has(self, ends: Ends) -> Bool[np.ndarray, " B"]:
        """Which examples have all of their rows here."""
        rows = [self._rows(*end) for end in zip(*ends, strict=True)]
        return np.logical_and.reduce([row >= 0 for row in rows])

    def keys(self, table: str) -> Int64[np.ndarray, " K"]:
        """Keys that have a row here; none of a table that is not here."""
        if table not in self._tables:
            return np.zeros(0, np.int64)
        return np.flatnonzero(self._tables[table].row >= 0)

    def vectors(self, table: str, keys: Int[np.ndarray, " B"]) -> Float32[np.ndarray, "B E"]:
        """Vectors of keys that have a row here."""
        found = self._tables[table].vectors.take(self._rows(table, keys))
        return found if self._transform is None else self._transform.apply(table, found)

    def blocks(
        self, table: str, keys: Int[np.ndarray, " B"]
    ) -> Iterator[Float32[np.ndarray, "_ E"]]:
        """The same, a few thousand rows at a time."""
        for start in range(0, len(keys), _BLOCK_ROWS):
            yield self.vectors(table, keys[start : start + _BLOCK_ROWS])
            self._tables[table].vectors.release()

    def features(self, ends: Ends) -> Float32[np.ndarray, "B F"]:
        """What a consumer sees: the vector of a node; of a pair, both and their product."""
        vectors = [self.vectors(*end) for end in zip(*ends, strict=True)]
        if len(vectors) == 1:
            return vectors[0]
        one, other = vectors
        return np.hstack([one, other, one * other])

    def pair_ends(self, tables: Sequence[str], pairs: PairTable) -> Ends:
        """The two ends of pairs: of texts the profile, where there is one, else the resume."""
        names = _two(tables)
        if self.kind == GRAPH:
            return Ends(names, (pairs.sender, pairs.receiver))
        return Ends(names, (_text(pairs), pairs.receiver_text))

    def ranking_ends(self, tables: Sequence[str], ranking: Ranking) -> tuple[Ends, Ends]:
        """The queries and the candidates."""
        sender, receiver = _two(tables)
        if self.kind == GRAPH:
            keys = ranking.sender, ranking.candidates
        else:
            keys = _text(ranking), ranking.candidate_text
        return Ends((sender,), (keys[0],)), Ends((receiver,), (keys[1],))

    def node_ends(self, table: str, tables: Path, num_nodes: int) -> Ends:
        """Every node of a type: of its texts, the latest."""
        if self.kind == GRAPH:
            return Ends((table,), (np.arange(num_nodes),))
        texts = read_texts(tables, table)
        latest = np.full(num_nodes, -1, np.int64)
        latest[texts.entity] = texts.text_id  # They are in the order of time: the last one stays.
        return Ends((table,), (latest,))

    def _rows(self, table: str, keys: Int[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        row = self._tables[table].row
        return np.where(keys >= 0, row[np.maximum(keys, 0)], -1)


def _read(folder: Path, kind: str, name: str, tables: Path) -> _Table:
    vectors, ids = open_vectors(folder, name), read_columns(folder, name, "id")["id"]
    node_type = name.partition(".")[0]
    known = read_nodes(tables, node_type)["id"].cast(pa.string())
    if kind == GRAPH:
        return _Table(rows_among(known, ids), vectors)
    owners = known.take(pa.array(read_texts(tables, node_type).entity))
    if not owners.equals(ids):
        raise InputError(
            f"{folder / name} has the vectors of other texts than {tables} holds ({len(ids)} and "
            f"{len(owners)} rows): compare two exports of the same tables"
        )
    return _Table(np.arange(len(ids)), vectors)


def _text(asked: PairTable | Ranking) -> Int[np.ndarray, " B"]:
    return np.where(asked.sender_text >= 0, asked.sender_text, asked.sender_resume)


def _two(tables: Sequence[str]) -> tuple[str, str]:
    sender, receiver = tables
    return sender, receiver
