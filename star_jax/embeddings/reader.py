"""Reading embeddings: by id, as of a time, mapped to an older version, from files that stay there.

    reader = EmbeddingReader(Path("W/graph_embeddings"), "member")
    rows = reader.get(["m17", "m99"], time=1_700_000_000)
    rows.vectors[rows.found]

By version or alias, and for a consumer that was trained on an older version:

    open_reader("members@active", "member", registry="R", as_version="members@3")
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.columns import Rows
from star_jax.embeddings.id_index import MISSING, IdIndex, as_ids
from star_jax.embeddings.quantise import Precision
from star_jax.embeddings.registry.registry import Registry, locate
from star_jax.embeddings.table import open_vectors, read_columns
from star_jax.embeddings.transforms.files import read_chain
from star_jax.embeddings.transforms.transform import Transform
from star_jax.shapes import NO_TIME

VERSION_DIGITS = 16
"""Of an artefact's digest, in the name of a version."""


class EmbeddingReader:
    """The embeddings of one node type of an artefact.

    Attributes:
      version: Names what the vectors are: 16 digits of the artefact's digest; of mapped ones, also
        of what they were mapped to and of the map: `NEW>OLD/MAP`.
      digest: Of the artefact.
      size: Numbers in a vector, as it is handed out.
      num_rows: Of the table; an id may have several, each from a time on.
    """

    def __init__(
        self,
        folder: Path,
        node_type: str,
        *,
        precision: Precision | None = None,
        transform: Transform | None = None,
    ) -> None:
        """Reads the ids and times; vectors stay on disk until they are asked for.

        Args:
          folder: An artefact with tables of embeddings.
          node_type: Which of them.
          precision: As in `open_vectors`; all are handed out as float32.
          transform: Maps what is read to an older version.

        Raises:
          InputError: The artefact is not complete, has no such table, or the transform is for
            others.
        """
        artefacts.read_any(folder)
        self.folder, self.node_type = folder, node_type
        self.digest = artefacts.digest(folder)
        self._files = open_vectors(folder, node_type, precision)
        rows = read_columns(folder, node_type, "id", "t")
        self._ids = rows["id"].cast(pa.large_string()).combine_chunks()
        times = rows["t"].fill_null(NO_TIME).combine_chunks()
        self._times = times.to_numpy(zero_copy_only=False)
        self._index: IdIndex | None = None
        self._transform = transform
        width = self._files.size
        self.num_rows = len(self._ids)
        self.version = _version(self.digest, node_type, transform)
        self.size = width
        if transform is not None:
            if transform.new != self.digest:
                raise InputError(
                    f"transform {transform.name} reads vectors of {transform.new[:12]}, {folder} "
                    f"holds those of {self.digest[:12]}; fit one for them"
                )
            self.size = transform.apply(node_type, np.zeros((0, width), np.float32)).shape[1]

    def get(self, ids: Sequence[str], time: int | None = None) -> Rows:
        """The last row of each id, as of a time.

        Args:
          ids: Any number, in any order; one may come more than once.
          time: The row may not be younger; what holds always is there at any time. None: the last
            row of all. In the unit of the table's times.

        Returns:
          A row per id, in their order. Where there is none, `found` is False, the vector NaN and
          the time NO_TIME.
        """
        names = as_ids(ids)
        rows = self._find(names, time)
        found = rows != MISSING
        vectors = np.full((len(rows), self.size), np.nan, np.float32)
        vectors[found] = self._take(rows[found])
        times = np.full(len(rows), NO_TIME, np.int64)
        times[found] = self._times[rows[found]]
        return Rows(names, times, vectors, found)

    def last(self, time: int | None = None) -> Int64[np.ndarray, " N"]:
        """The rows that `get` would choose for all ids, in the order of the table."""
        rows = self._find(self._ids, time)
        return np.unique(rows[rows != MISSING])

    def ids(self, rows: Int64[np.ndarray, " N"]) -> pa.Array:
        """The ids of rows."""
        return self._ids.take(pa.array(rows))

    def blocks(self, rows: Int64[np.ndarray, " N"], num_rows: int) -> Iterator[Rows]:
        """Rows by their number, so many of them in memory at a time."""
        for start in range(0, len(rows), num_rows):
            part = rows[start : start + num_rows]
            everything = np.ones(len(part), bool)
            yield Rows(self.ids(part), self._times[part], self._take(part), everything)

    def _find(self, names: pa.Array, time: int | None) -> Int64[np.ndarray, " Q"]:
        if self._index is None:
            self._index = IdIndex(self._ids, self._times)
        return self._index.find(names, time)

    def _take(self, rows: Int64[np.ndarray, " N"]) -> Float32[np.ndarray, "N E"]:
        found = self._files.take(rows)
        return found if self._transform is None else self._transform.apply(self.node_type, found)


def open_reader(
    ref: str,
    node_type: str,
    *,
    registry: str | None = None,
    as_version: str | None = None,
    precision: Precision | None = None,
) -> EmbeddingReader:
    """A reader of a folder or of a version in a registry.

    Args:
      ref: A folder, or NAME@NUMBER, NAME@ALIAS, NAME.
      node_type: Which table.
      registry: Where versions are; a folder needs none.
      as_version: As `transform_to`: maps what is read to this older version.
      precision: As `EmbeddingReader`.

    Raises:
      InputError: There is no such version, or no chain of transforms leads to the older one.
    """
    return EmbeddingReader(
        locate(ref, registry),
        node_type,
        precision=precision,
        transform=transform_to(ref, as_version, registry),
    )


def transform_to(ref: str, old: str | None, registry: str | None) -> Transform | None:
    """What maps a version to an older one; None where no older one is asked for.

    Args:
      ref: The version that is read.
      old: The older version, or the folder of a transform that leads to it.
      registry: Where versions are.

    Raises:
      InputError: As `open_reader`.
    """
    if old is None:
        return None
    if (Path(old) / artefacts.MANIFEST).is_file():
        return read_chain([Path(old)])
    if registry is None:
        raise InputError(
            f"{old} is no folder of a transform; as an older version, NAME@NUMBER, it needs "
            "--registry"
        )
    chain = Registry(registry).chain(ref, old)
    return read_chain(chain) if chain else None  # One and the same needs no map.


def _version(digest: str, node_type: str, transform: Transform | None) -> str:
    own = digest[:VERSION_DIGITS]
    if transform is None:
        return own
    sha = hashlib.sha256()
    for step in transform.of(node_type):
        sha.update(f"{type(step.map).__name__} {step.renormalise}".encode())
        for name, values in sorted(step.map.arrays().items()):
            sha.update(f"{name} {values.dtype.str} {values.shape}".encode())
            sha.update(values.tobytes())
    return f"{own}>{transform.old[:VERSION_DIGITS]}/{sha.hexdigest()[:8]}"
