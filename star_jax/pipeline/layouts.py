"""Layouts: the static shapes that the texts of a batch are put into, and where each one goes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from star_jax.pipeline.lengths import MULTIPLE, choose_lengths, padded_length

_QUANTILES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_SPARE = 1.02  # Rows beyond what the fullest sampled batch needs, so that none is ever short.


class Table(NamedTuple):
    """Rows of one length, each holding up to `slots` texts."""

    rows: int
    length: int
    slots: int


Layout = tuple[Table, ...]
"""The tables of one chunk, lengths rising."""


def choose_layouts(
    samples: Sequence[Int[np.ndarray, " _"]],
    num_tables: int,
    *,
    max_texts: int,
    max_length: int,
    row_multiple: int,
) -> tuple[Layout, ...]:
    """Layouts for batches like the samples: one for most, one for the others, one for any.

    Args:
      samples: Lengths of the texts of some batches.
      num_tables: At most this many per layout; with 1 there is only the layout for any batch.
      max_texts: No batch has more texts,
      max_length: and none is longer.
      row_multiple: Every table has a multiple of so many rows.

    Returns:
      Cheapest first; the last one holds every batch.
    """
    any_batch = (Table(_round_up(max_texts, row_multiple), _round_up(max_length, MULTIPLE), 1),)
    if num_tables == 1:
        return (any_batch,)
    lengths = np.arange(0, any_batch[0][1], MULTIPLE)
    longer = np.array([[(sample > length).sum() for length in lengths] for sample in samples])

    def layout(num_longer: np.ndarray) -> Layout:
        needed = [_round_up(int(np.ceil(n)), row_multiple) for n in num_longer]
        rows = np.minimum(needed, any_batch[0][0])
        # Length of the i-th longest row: the least one that fewer than i + 1 texts exceed.
        ends = np.append(lengths, any_batch[0][1])
        envelope = ends[[np.flatnonzero(np.append(rows, 0) <= i)[0] for i in range(int(rows[0]))]]
        chosen = choose_lengths(envelope, num_tables)
        padded = np.array([padded_length(int(length), chosen) for length in envelope])
        return tuple(Table(int((padded == length).sum()), length, 1) for length in chosen)

    safe = layout(longer.max(axis=0))
    tight = [layout(np.quantile(longer, q, axis=0)) for q in _QUANTILES]
    tried = [*tight, safe]
    # What a batch costs on average when those that do not fit take the safe layout.
    fitting = [np.mean([place(s, option) is not None for s in samples]) for option in tried]
    costs = [f * _tokens(o) + (1 - f) * _tokens(safe) for f, o in zip(fitting, tried, strict=True)]
    return tuple(dict.fromkeys([tried[int(np.argmin(costs))], safe, any_batch]))


def choose_packing(
    samples: Sequence[Int[np.ndarray, " _"]], row_length: int, *, num_chunks: int, row_multiple: int
) -> Layout:
    """One table of rows that hold several texts, with room for batches like the samples.

    Args:
      samples: Lengths of the texts of some batches; none is longer than a row.
      row_length: Tokens of a row.
      num_chunks: A batch is cut into so many of these tables.
      row_multiple: The table has a multiple of so many rows.
    """
    fillings = [_first_fit(sample, row_length, len(sample), len(sample)) for sample in samples]
    rows = [filling[0] for filling in fillings if filling is not None]
    needed = _SPARE * max(int(row.max(initial=0)) + 1 for row in rows)
    slots = max(int(np.bincount(row).max(initial=1)) for row in rows)
    num_rows = _round_up(int(np.ceil(needed / num_chunks)), row_multiple)
    return (Table(num_rows, row_length, max(2, slots)),)


def cut(layout: Layout, num_chunks: int) -> Layout:
    """The tables of one chunk of a layout whose rows are a multiple of the chunks."""
    return tuple(table._replace(rows=table.rows // num_chunks) for table in layout)


def place(
    lengths: Int[np.ndarray, " U"], layout: Layout, num_chunks: int = 1
) -> Int[np.ndarray, " U"] | None:
    """A slot for each text, counted through rows, tables and chunks; None when they do not fit.

    Where a row holds one text they fill rows from the longest on, so a layout is refused only if
    no placing exists. Several to a row are placed first-fit, the longest first.
    """
    if len(layout) == 1 and layout[0].slots > 1:
        (table,) = layout
        filling = _first_fit(lengths, table.length, num_chunks * table.rows, table.slots)
        return None if filling is None else filling[0] * table.slots + filling[1]
    of_chunk = np.repeat([t.length for t in layout], [t.rows for t in layout])
    rows = np.tile(of_chunk, num_chunks)
    order = np.argsort(-np.asarray(lengths), kind="stable")
    free = np.argsort(-rows, kind="stable")[: len(lengths)]
    if len(free) < len(lengths) or (lengths[order] > rows[free]).any():
        return None
    placed = np.empty(len(lengths), np.int64)
    placed[order] = free
    return placed


def num_slots(layout: Layout) -> int:
    """Texts that a chunk has room for."""
    return sum(table.rows * table.slots for table in layout)


def _first_fit(
    lengths: Int[np.ndarray, " U"], row_length: int, num_rows: int, slots: int
) -> tuple[Int[np.ndarray, " U"], Int[np.ndarray, " U"]] | None:
    """(Row, slot) of each text, the longest first; None when they do not fit."""
    left = np.full(num_rows, row_length, np.int64)
    used = np.zeros(num_rows, np.int64)
    row, slot = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    for text in np.argsort(-np.asarray(lengths), kind="stable"):
        fits = left >= lengths[text]
        at = int(np.argmax(fits)) if num_rows else 0
        if not num_rows or not fits[at]:
            return None
        row[text], slot[text] = at, used[at]
        left[at] -= lengths[text]
        used[at] += 1
        if used[at] == slots:
            left[at] = -1
    return row, slot


def _tokens(layout: Layout) -> int:
    return sum(table.rows * table.length for table in layout)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
