"""The work of a bulk export in parts: files that appear whole, shared by all processes at work.

A part is some thousand different texts of about equal length. Part i is encoded by process i
modulo their number, and stored as `part-00000i.npy` under a name that says all it was made from;
whoever finds all parts there may write the tables. Nothing else is agreed upon.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, Int, Int64

from star_jax import artefacts
from star_jax.embeddings.reuse import read_vectors, write_vectors

_PLAN = "order.npy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Which of several processes this one is, when they share an export.

    Attributes:
      index: From 0 on. None: `jax.process_index()`, 0 unless `jax.distributed` was started.
      count: Of processes; they see one working directory. None: `jax.process_count()`.
    """

    index: int | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if (self.index is None) != (self.count is None):
            raise ValueError(f"index {self.index} and count {self.count}: give both or none")
        if self.index is not None and self.count is not None and not 0 <= self.index < self.count:
            raise ValueError(f"index {self.index} is not one of {self.count} workers, from 0 on")

    def share(self) -> tuple[int, int]:
        """(Index, count) of this process."""
        if self.index is None or self.count is None:
            return jax.process_index(), jax.process_count()
        return self.index, self.count


class Parts:
    """Vectors of records in files of about equal work; the plan is a function of its arguments.

    Attributes:
      folder: Of the files.
      order: All records, part after part.
      records: Of each part.
      size: Width of the vectors.
    """

    def __init__(
        self,
        scratch: Path,
        made_from: Mapping[str, object],
        missing: Int[np.ndarray, " R"],
        lengths: Int[np.ndarray, " R"],
        *,
        part_texts: int,
        size: int,
    ) -> None:
        """Makes the plan; equal ones share a folder, others never touch it.

        Args:
          scratch: Holds a folder per plan.
          made_from: Names all that decides a vector or the plan.
          missing: Records to encode.
          lengths: Of each of them.
          part_texts: Most records of a part.
          size: Width of the vectors.
        """
        text = json.dumps(dict(made_from), sort_keys=True)
        self.folder = scratch / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.order: Int64[np.ndarray, " R"] = missing[np.argsort(lengths, kind="stable")]
        starts = range(0, len(self.order), part_texts)
        self.records = [self.order[start : start + part_texts] for start in starts]
        self.size = size

    @property
    def paths(self) -> list[Path]:
        """Files of all parts, there or not."""
        return [part_path(self.folder, number) for number in range(len(self.records))]

    def to_do(self) -> list[int]:
        """Parts that are not there yet."""
        return [number for number, path in enumerate(self.paths) if not path.is_file()]

    def write(self, number: int, vectors: Float32[np.ndarray, "N E"]) -> None:
        """Stores a part: whole, or not at all."""
        write_vectors(self.paths[number], vectors)

    def share_plan(self) -> None:
        """Stores what `planned` reads."""
        with artefacts.whole_file(self.folder / _PLAN) as partial, partial.open("wb") as file:
            np.save(file, self.order)

    def check(self) -> None:
        """Reads the shape of every part.

        Raises:
          InputError: One holds something else.
        """
        for path, records in zip(self.paths, self.records, strict=True):
            read_vectors(path, len(records), self.size)


def part_path(folder: Path, number: int) -> Path:
    """The file of a part's vectors."""
    return folder / f"part-{number:06d}.npy"


def planned(folder: Path, number: int, part_texts: int) -> Int64[np.ndarray, " R"]:
    """The records of a part, for a process that knows the plan by its folder alone."""
    order = np.load(folder / _PLAN, mmap_mode="r")
    return np.array(order[number * part_texts : (number + 1) * part_texts])
