"""Rows sorted in parts: ranges of the order, each sorted by itself, that follow one another.

Rows are structured arrays; their fields, one after the other, are the order. It is total, so that
nothing about the parts shows in the rows put together: not their number, their borders, nor who
made them.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped

from star_jax import artefacts
from star_jax.config import InputError

_CHUNK_ROWS = 1 << 18
SAMPLES_PER_PART = 64
"""Rows of a sample per part, for parts of about equal size."""


def as_rows(columns: dict[str, np.ndarray], dtype: np.dtype) -> Shaped[np.ndarray, " M"]:
    """Columns side by side."""
    rows = np.empty(len(next(iter(columns.values()))), dtype)
    for name in rows.dtype.names or ():
        rows[name] = columns[name]
    return rows


def choose_borders(
    sample: Shaped[np.ndarray, " S"], num_rows: int, part_rows: int
) -> Shaped[np.ndarray, " B"]:
    """First rows of all parts but the first one, none of which is empty.

    Args:
      sample: Some of the rows.
      num_rows: All of them.
      part_rows: About as many make a part.
    """
    sample = sample[_order(sample)]
    num_parts = max(1, -(-num_rows // part_rows))
    chosen = sample[[len(sample) * i // num_parts for i in range(1, num_parts)]]
    before = np.concatenate([sample[:1], chosen[:-1]])
    return chosen[chosen != before]


def split_rows(
    rows: Shaped[np.ndarray, " M"], borders: Shaped[np.ndarray, " B"]
) -> Iterator[tuple[int, Shaped[np.ndarray, " _"]]]:
    """(Part, its rows) of those parts that have some of these rows."""
    joined = np.concatenate([borders, rows])
    order = _order(joined)  # Stable: a border comes before the rows that are equal to it.
    is_row = order >= len(borders)
    part, ordered = np.cumsum(~is_row)[is_row], joined[order[is_row]]
    ends = np.searchsorted(part, np.arange(len(borders) + 1), side="right")
    for number, end in enumerate(ends):
        start = ends[number - 1] if number else 0
        if start < end:
            yield number, ordered[start:end]


def write_part(path: Path, blocks: Iterable[Shaped[np.ndarray, " _"]]) -> None:
    """Stores the rows of a part in order: all of them, or nothing."""
    rows = np.concatenate(list(blocks))
    with artefacts.whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, rows[_order(rows)])


def read_parts(paths: Sequence[Path], num_rows: int) -> Iterator[dict[str, np.ndarray]]:
    """The rows of all parts as columns, some at a time.

    Raises:
      InputError: There are more or fewer rows than there should be.
    """
    found = 0
    for path in paths:
        rows = np.load(path, mmap_mode="r")
        found += len(rows)
        for start in range(0, len(rows), _CHUNK_ROWS):
            chunk = rows[start : start + _CHUNK_ROWS]
            yield {name: np.ascontiguousarray(chunk[name]) for name in chunk.dtype.names}
    if found != num_rows:
        where = paths[0].parent if paths else "no part"
        raise InputError(f"{where} holds {found} rows, needed {num_rows}; remove it")


def _order(rows: Shaped[np.ndarray, " M"]) -> Int[np.ndarray, " M"]:
    return np.lexsort([rows[name] for name in reversed(rows.dtype.names or ())])
