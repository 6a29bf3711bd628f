"""Vectors that are there already: rows of npy files, found again by the key of their content."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, Int64, Shaped

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.quantise import Precision, code_dtype, dequantise, quantise

MISSING = -1


class VectorFiles:
    """Rows counted through several npy files, each mapped when first asked for; read as float32.

    Attributes:
      size: Width of the vectors.
      shape: Of all vectors.
      dtype: Of what is read.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        paths: Sequence[Path],
        num_rows: Sequence[int],
        size: int,
        precision: Precision = "float32",
        ranges: Float32[np.ndarray, "2 E"] | None = None,
    ) -> None:
        """Takes note of the files.

        Args:
          paths: May not be there yet.
          num_rows: Of each file.
          size: Width of the vectors.
          precision: As the files were written; one that `dequantise` can read.
          ranges: For int8 and uint8.
        """
        self._paths, self.size, self._ranges = list(paths), size, ranges
        self._precision: Precision = precision
        self._ends = np.cumsum([0, *num_rows])
        self.shape = (int(self._ends[-1]), size)
        self._open: dict[int, np.ndarray] = {}

    def __getitem__(self, rows: Int[np.ndarray, " N"]) -> Float32[np.ndarray, "N E"]:
        """As `take`: stands where an array may stand."""
        return self.take(rows)

    def take(self, rows: Int[np.ndarray, " N"]) -> Float32[np.ndarray, "N E"]:
        """Copies of rows, in the order asked for.

        Raises:
          InputError: A file is missing or does not hold what it should.
        """
        if len(self._paths) == 1:
            return dequantise(self._map(0)[rows], self._precision, self._ranges)
        stored = np.empty((len(rows), self.size), code_dtype(self._precision))
        of_file = np.searchsorted(self._ends, rows, side="right") - 1
        for file in np.unique(of_file):
            here = of_file == file
            stored[here] = self._map(int(file))[rows[here] - self._ends[file]]
        return dequantise(stored, self._precision, self._ranges)

    def check(self) -> None:
        """Looks at every file; as `take` of all rows, without reading them."""
        for file in range(len(self._paths)):
            self._map(file)
            self.release()

    def release(self) -> None:
        """Lets go of the maps, and with them of the pages that were read; asked again, maps anew.

        What reads all rows in order calls this as it goes, so that it does not end up with all
        files in its resident memory.
        """
        self._open.clear()

    def _map(self, file: int) -> np.ndarray:
        found = self._open.get(file)
        if found is None:  # Another thread may let go of the maps meanwhile.
            path, needed = self._paths[file], int(np.diff(self._ends)[file])
            if not path.is_file():
                raise InputError(f"{path} is missing, needed for {needed} vectors")
            found = self._open[file] = read_vectors(path, needed, self.size, self._precision)
        return found


class KnownVectors:
    """The vectors of complete exports by one and the same model, by content key."""

    def __init__(self, exports: Sequence[Path], kind: str) -> None:
        """Reads the keys of all exports; those without float32 vectors have none to give.

        Args:
          exports: Artefacts.
          kind: Of the artefacts.

        Raises:
          InputError: A file of keys does not have the bytes it was written with.
        """
        self.paths: list[Path] = []
        self.num_rows: list[int] = []
        keys: list[np.ndarray] = [np.zeros(0, "S16")]
        self._manifests = {path: artefacts.read_manifest(path, kind) for path in exports}
        for export, manifest in self._manifests.items():
            for name in manifest.files:
                vectors = Path(name).with_name(Path(name).name.replace("keys-", "vectors-"))
                if Path(name).match("*/keys-*.npy") and vectors.as_posix() in manifest.files:
                    keys.append(np.load(_checked(export, name, manifest)))
                    self.paths.append(export / vectors)
                    self.num_rows.append(len(keys[-1]))
        joined = np.concatenate(keys)
        self._order = np.argsort(joined, kind="stable")
        self._sorted = joined[self._order]

    def find(self, keys: Shaped[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """Row of each key, counted through `paths`; MISSING where there is none."""
        if not len(self._sorted):
            return np.full(len(keys), MISSING, np.int64)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._order[at], MISSING)

    def check(self, rows: Int[np.ndarray, " N"]) -> None:
        """Reads the files that hold these rows and compares their digests.

        Raises:
          InputError: Naming the file whose bytes changed.
        """
        ends = np.cumsum([0, *self.num_rows])
        for file in np.unique(np.searchsorted(ends, rows, side="right") - 1):
            path = self.paths[file]
            export = path.parent.parent
            _checked(export, path.relative_to(export).as_posix(), self._manifests[export])


def write_vectors(
    path: Path, vectors: Float32[np.ndarray, "N E"], precision: Precision = "float32"
) -> None:
    """Stores a file of vectors, in a precision without ranges: whole, or not at all."""
    with artefacts.whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, quantise(vectors, precision, None))


def read_vectors(
    path: Path, num_rows: int, size: int, precision: Precision = "float32"
) -> Shaped[np.ndarray, "N E"]:
    """Maps a file of vectors as it was stored.

    Raises:
      InputError: It holds something else.
    """
    vectors, needed = np.load(path, mmap_mode="r"), code_dtype(precision)
    if vectors.shape != (num_rows, size) or vectors.dtype != needed:
        raise InputError(
            f"{path} has shape {vectors.shape} of {vectors.dtype}, "
            f"needed ({num_rows}, {size}) of {needed}; remove it"
        )
    return vectors


def _checked(export: Path, name: str, manifest: artefacts.Manifest) -> Path:
    path = export / name
    if artefacts.file_digest(path) != manifest.files[name]["sha256"]:
        raise InputError(
            f"{path} does not have the sha256 it was written with; remove {export} and make it anew"
        )
    return path
