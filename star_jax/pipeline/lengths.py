"""Static shapes for texts of many lengths: few enough to compile, close enough to waste little."""

import numpy as np
from jaxtyping import Int

MULTIPLE = 8
"""Padded lengths are multiples of it."""


def choose_lengths(lengths: Int[np.ndarray, " N"], count: int) -> tuple[int, ...]:
    """At most `count` padded lengths with the least padding for texts of these lengths.

    Args:
      lengths: Of real texts, at least one; the last chosen length holds the longest.
      count: How many shapes may be compiled.
    """
    steps = -(-np.asarray(lengths, np.int64) // MULTIPLE)
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
            chosen.append(int(values[end - 1]) * MULTIPLE)
            end = int(cut[end - 1])
    return tuple(reversed(chosen))


def padded_length(length: int, choices: tuple[int, ...]) -> int:
    """The smallest of the chosen lengths that holds a text."""
    for choice in choices:
        if length <= choice:
            return choice
    raise ValueError(f"a text of {length} tokens, needed at most {choices[-1]}")
