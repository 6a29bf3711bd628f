"""Pairs of rows that tell of the same in two versions of an embeddings artefact.

Rows pair by the entity's own id. A text table has a row for every text: there they pair by id and
time, and rows that share both (a profile and a resume) in their order, if there are as many of
them in both versions. Which rows pair is written down once, sorted out of core by DuckDB; then any
number of processes reads the vectors block by block.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int, Int64

from star_jax.config import InputError
from star_jax.embeddings.reuse import VectorFiles
from star_jax.embeddings.table import open_vectors, rows_paths
from star_jax.sorting import NO_TIME_SQL, session

Part = Literal["fit", "stopping", "held_out"]
PARTS: tuple[Part, ...] = get_args(Part)

_BATCH_ROWS = 1 << 18
_DRAW = 1 << 32  # Values of the digest that a part is drawn by.


class PairsConfig(NamedTuple):
    """How pairs are found and drawn.

    Attributes:
      timed: Whether rows of one entity are told apart by their time.
      held_out: Share of the entities whose pairs are only evaluated on.
      stopping: Share of the entities whose pairs choose a stopping point.
      memory_limit_gib: Of the sorting.
    """

    timed: bool
    held_out: float
    stopping: float
    memory_limit_gib: float


class Pairs:
    """The pairs of one node type, by part.

    Attributes:
      sizes: Widths of the new and of the old vectors.
    """

    def __init__(self, old: Path, new: Path, node_type: str, scratch: Path) -> None:
        """Opens what `match` wrote.

        Args:
          old: Artefact of the old version.
          new: Artefact of the new one.
          node_type: Of both.
          scratch: As given to `match`.
        """
        self._new: VectorFiles = open_vectors(new, node_type)
        self._old: VectorFiles = open_vectors(old, node_type)
        self._rows = {part: _read(_path(scratch, node_type, part)) for part in PARTS}
        self.sizes = self._new.size, self._old.size

    def count(self, part: Part) -> int:
        """Pairs of a part."""
        return len(self._rows[part])

    def take(
        self, part: Part, numbers: Int[np.ndarray, " N"]
    ) -> tuple[Float32[np.ndarray, "N I"], Float32[np.ndarray, "N O"]]:
        """New and old vectors of some pairs of a part."""
        rows = self._rows[part][numbers]
        return self._new.take(rows[:, 0]), self._old.take(rows[:, 1])

    def blocks(
        self, part: Part, block: int, *, worker: int = 0, workers: int = 1
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """New and old vectors of a worker's share of a part, so many pairs at a time."""
        count = self.count(part)
        end = count * (worker + 1) // workers
        for start in range(count * worker // workers, end, block):
            yield self.take(part, np.arange(start, min(start + block, end)))
            for vectors in (self._new, self._old):
                vectors.release()


def match(
    old: Path, new: Path, node_type: str, scratch: Path, config: PairsConfig
) -> dict[str, int]:
    """Finds the pairs of a node type and writes which rows they are.

    Args:
      old: Artefact of the old version.
      new: Artefact of the new one.
      node_type: Of both.
      scratch: An existing folder.
      config: As described there.

    Returns:
      Counts: of rows on both sides, of those without a partner, of pairs by part.

    Raises:
      InputError: There is no pair, or the rows do not fit the memory limit or the disk.
    """
    sides = {"new": rows_paths(new, node_type), "old": rows_paths(old, node_type)}
    rows = {side: sum(pq.read_metadata(path).num_rows for path in sides[side]) for side in sides}
    counts = dict.fromkeys(PARTS, 0)
    held = config.held_out * _DRAW
    with contextlib.ExitStack() as stack:
        paths = {part: _path(scratch, node_type, part) for part in PARTS}
        paths["fit"].parent.mkdir(exist_ok=True)
        files = {part: stack.enter_context(path.open("wb")) for part, path in paths.items()}
        sorting = session(scratch / ".sorting", config.memory_limit_gib, None, "finding the pairs")
        connection = stack.enter_context(sorting)
        query = _query({side: _keyed(sides[side], timed=config.timed) for side in sides})
        for batch in connection.sql(query).to_arrow_reader(_BATCH_ROWS):
            found, draw = _columns(batch)
            bounds = np.array([held, held + config.stopping * _DRAW])
            part_of = np.searchsorted(bounds, draw, side="right")
            for number, part in enumerate(("held_out", "stopping", "fit")):
                own = found[part_of == number]
                files[part].write(own.tobytes())
                counts[part] += len(own)
    num_pairs = sum(counts.values())
    if not num_pairs:
        what = "entity and time" if config.timed else "entity"
        raise InputError(
            f"{new} and {old} have {rows['new']} and {rows['old']} rows of {node_type}, none of "
            f"the same {what}; needed two versions of the same data, or leave it out of node_types"
        )
    alone = {f"{side}_rows_alone": number - num_pairs for side, number in rows.items()}
    return {f"{side}_rows": number for side, number in rows.items()} | alone | counts


def _keyed(paths: list[Path], *, timed: bool) -> str:
    """Rows with their number, and which of how many of their key they are."""
    shards, first = [], 0
    for path in paths:
        escaped = str(path).replace("'", "''")
        shards.append(
            f"SELECT id, {f'coalesce(t, {NO_TIME_SQL})' if timed else '0'} AS t, "
            f"file_row_number + {first} AS row "
            f"FROM read_parquet('{escaped}', file_row_number = true)"
        )
        first += pq.read_metadata(path).num_rows
    return (
        "SELECT id, t, row, row_number() OVER (PARTITION BY id, t ORDER BY row) AS nth, "
        f"count(*) OVER (PARTITION BY id, t) AS many FROM ({' UNION ALL '.join(shards)})"
    )


def _query(keyed: dict[str, str]) -> str:
    """Pairs in the order of the new version, each with a number drawn from the entity's id."""
    return (  # In the place of a name, a query could refer to columns of the other one.
        f"WITH n AS ({keyed['new']}), o AS ({keyed['old']}) "
        "SELECT n.row AS new, o.row AS old, ('0x' || substr(md5(n.id), 1, 8))::UBIGINT AS draw "
        "FROM n JOIN o USING (id, t, nth, many) ORDER BY n.row"
    )


def _columns(batch: pa.RecordBatch) -> tuple[Int64[np.ndarray, "N 2"], np.ndarray]:
    new, old, draw = (column.to_numpy(zero_copy_only=False) for column in batch.columns)
    return np.stack([new, old], axis=1).astype(np.int64), draw


def _path(scratch: Path, node_type: str, part: Part) -> Path:
    return scratch / node_type / f"{part}.rows"


def _read(path: Path) -> Int64[np.ndarray, "N 2"]:
    if not path.stat().st_size:  # Which cannot be mapped.
        return np.zeros((0, 2), np.int64)
    return np.memmap(path, np.int64, mode="r").reshape(-1, 2)
