"""Static shapes for texts of many lengths: few enough to compile, close enough to waste little."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

_MULTIPLE = 8
_QUANTILES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

Layout = tuple[tuple[int, int], ...]
"""(Rows, padded length) of each table of texts, lengths rising."""


def choose_lengths(lengths: Int[np.ndarray, " N"], count: int) -> tuple[int, ...]:
    """At most `count` padded lengths with the least padding for texts of these lengths.

    Args:
      lengths: Of real texts, at least one; the last chosen length holds the longest.
      count: How many shapes may be compiled.
    """
    steps = -(-np.asarray(lengths, np.int64) // _MULTIPLE)
    values, num = np.unique(np.maximum(steps, 1), return_counts=True)
    before = np.concatenate([[0], np.cumsum(num)])
    # cost[j]: least padded steps for the first j values, in as many buckets as there are cuts.
    cost = np.concatenate([[0], before[1:] * values])
    starts = np.arange(len(values) + 1)[:, None]
    possible = starts <= np.arange(len(values))[None, :]
    cuts: list[np.ndarray] = []
    for _ in range(min(count, len(values)) - 1):
        # One more bucket: values i..j in the last one, the rest as before.
        total = cost[:, None] + (before[None, 1:] - before[:, None]) * values[None, :]
        total = np.where(possible, total, np.iinfo(np.int64).max)
        cuts.append(np.argmin(total, axis=0))
        cost = np.concatenate([[0], np.min(total, axis=0)])
    chosen, end = [], len(values)
    for cut in [*reversed(cuts), np.zeros(len(values), np.int64)]:
        if end:
            chosen.append(int(values[end - 1]) * _MULTIPLE)
            end = int(cut[end - 1])
    return tuple(reversed(chosen))


def padded_length(length: int, choices: tuple[int, ...]) -> int:
    """The smallest of the chosen lengths that holds a text."""
    for choice in choices:
        if length <= choice:
            return choice
    raise ValueError(f"a text of {length} tokens, needed at most {choices[-1]}")


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
    any_batch = ((_round_up(max_texts, row_multiple), _round_up(max_length, _MULTIPLE)),)
    if num_tables == 1:
        return (any_batch,)
    lengths = np.arange(0, any_batch[0][1], _MULTIPLE)
    longer = np.array([[(sample > length).sum() for length in lengths] for sample in samples])

    def layout(num_longer: np.ndarray) -> Layout:
        needed = [_round_up(int(np.ceil(n)), row_multiple) for n in num_longer]
        rows = np.minimum(needed, any_batch[0][0])
        # Length of the i-th longest row: the least one that fewer than i + 1 texts exceed.
        ends = np.append(lengths, any_batch[0][1])
        envelope = ends[[np.flatnonzero(np.append(rows, 0) <= i)[0] for i in range(int(rows[0]))]]
        chosen = choose_lengths(envelope, num_tables)
        padded = np.array([padded_length(int(length), chosen) for length in envelope])
        return tuple((int((padded == length).sum()), length) for length in chosen)

    safe = layout(longer.max(axis=0))
    tight = [layout(np.quantile(longer, q, axis=0)) for q in _QUANTILES]
    tried = [*tight, safe]
    # What a batch costs on average when those that do not fit take the safe layout.
    fitting = [np.mean([place(s, option) is not None for s in samples]) for option in tried]
    costs = [f * _slots(o) + (1 - f) * _slots(safe) for f, o in zip(fitting, tried, strict=True)]
    return tuple(dict.fromkeys([tried[int(np.argmin(costs))], safe, any_batch]))


def place(lengths: Int[np.ndarray, " U"], layout: Layout) -> Int[np.ndarray, " U"] | None:
    """A row for each text, counted through the tables; None when they do not all fit.

    Texts fill rows from the longest on, so a layout is refused only if no placing exists.
    """
    rows = np.repeat([length for _, length in layout], [num_rows for num_rows, _ in layout])
    order = np.argsort(-np.asarray(lengths), kind="stable")
    free = np.arange(len(rows))[::-1][: len(lengths)]
    if len(free) < len(lengths) or (lengths[order] > rows[free]).any():
        return None
    placed = np.empty(len(lengths), np.int64)
    placed[order] = free
    return placed


def _slots(layout: Layout) -> int:
    return sum(num_rows * length for num_rows, length in layout)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
