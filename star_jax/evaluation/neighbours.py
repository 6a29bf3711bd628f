"""Nearest neighbours by cosine, exact, and how many of them two versions share."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Float32, Int, Int64


def nearest(
    queries: Float[np.ndarray, "Q E"],
    own: Int[np.ndarray, " Q"],
    blocks: Iterable[Float[np.ndarray, "_ E"]],
    k: int,
) -> Int64[np.ndarray, "Q {k}"]:
    """The rows whose vectors are most alike, best first; of equals, the earlier row.

    Args:
      queries: Vectors whose neighbours are asked for.
      own: The row that each query is itself, which is no neighbour.
      blocks: All vectors, block after block in the order of their rows.
      k: How many neighbours.

    Raises:
      ValueError: There are not so many rows.
    """
    unit = _unit(queries)
    score = np.full((len(unit), k), -np.inf, np.float32)
    row = np.full((len(unit), k), -1, np.int64)
    start = 0
    for block in blocks:
        alike = unit @ _unit(block).T
        inside = np.flatnonzero((own >= start) & (own < start + len(block)))
        alike[inside, own[inside] - start] = -np.inf
        rows = np.broadcast_to(np.arange(start, start + len(block)), alike.shape)
        score, row = _best(np.hstack([score, alike]), np.hstack([row, rows]), k)
        start += len(block)
    if start <= k:
        raise ValueError(f"{start} rows have {start - 1} neighbours each, needed {k}")
    return row


def overlap(
    first: Int[np.ndarray, "Q K"], second: Int[np.ndarray, "Q K"]
) -> Float[np.ndarray, " Q"]:
    """Per query, the share of the first neighbours that are among the second ones."""
    return (first[:, :, None] == second[:, None, :]).any(axis=2).mean(axis=1)


def _best(
    score: Float32[np.ndarray, "Q C"], row: Int64[np.ndarray, "Q C"], k: int
) -> tuple[Float32[np.ndarray, "Q K"], Int64[np.ndarray, "Q K"]]:
    """Columns of the k largest scores; columns are in the order of the rows."""
    least = np.partition(score, -k, axis=1)[:, -k:].min(axis=1, keepdims=True)
    query, column = np.nonzero(score >= least)  # The k best, and ties with the last of them.
    order = np.lexsort((column, -score[query, column], query))
    first = np.searchsorted(query, np.arange(len(score)))
    chosen = column[order[first[:, None] + np.arange(k)]]
    return np.take_along_axis(score, chosen, axis=1), np.take_along_axis(row, chosen, axis=1)


def _unit(vectors: Float[np.ndarray, "N E"]) -> Float32[np.ndarray, "N E"]:
    """Of length 1; zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
