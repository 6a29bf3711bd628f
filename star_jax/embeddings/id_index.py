"""From ids to rows, for tables of many millions: sorted hashes, and a look at the id itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64, UInt64

MISSING = -1

_CHUNK_ROWS = 1 << 20
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: spreads what it multiplies.
_WORD = 8  # Bytes of an id that are hashed at a time.


class IdIndex:
    """Finds the rows of ids, each at some time: 16 bytes per row beside the ids themselves."""

    def __init__(self, ids: pa.Array, times: Int64[np.ndarray, " N"]) -> None:
        """Sorts the rows by hash, then by time; of one time, the last row comes last.

        Args:
          ids: One per row, not unique: of `pa.large_string`.
          times: From when on a row holds.
        """
        self._ids, self._times = ids, times
        hashes = hashes_of(ids)
        self._order = np.lexsort((times, hashes))
        self._hashes = hashes[self._order]

    def find(self, names: pa.Array, time: int | None) -> Int64[np.ndarray, " Q"]:
        """The last row of each id whose time is not after the one given; MISSING: there is none.

        Args:
          names: Ids, of `pa.large_string`.
          time: None: the last row of all.
        """
        hashes = hashes_of(names)
        first = np.searchsorted(self._hashes, hashes, side="left")
        stop = np.searchsorted(self._hashes, hashes, side="right")
        if time is not None:
            stop = self._after(first, stop, time)
        rows, at = np.full(len(names), MISSING, np.int64), stop - 1
        left = np.flatnonzero(at >= first)
        while len(left):  # More than once only where other ids have the same hash.
            found = self._order[at[left]]
            both = [self._ids.take(pa.array(found)), names.take(pa.array(left))]
            equal: Any = pc.call_function("equal", both)
            equal = equal.to_numpy(zero_copy_only=False)
            rows[left[equal]] = found[equal]
            left = left[~equal]
            at[left] -= 1
            left = left[at[left] >= first[left]]
        return rows

    def _after(
        self, first: Int64[np.ndarray, " Q"], stop: Int64[np.ndarray, " Q"], time: int
    ) -> Int64[np.ndarray, " Q"]:
        """Where, between two places each, the times after the one given begin."""
        low, high = first.copy(), stop.copy()
        left = np.flatnonzero(low < high)
        while len(left):
            middle = (low[left] + high[left]) // 2
            before = self._times[self._order[middle]] <= time
            low[left[before]] = middle[before] + 1
            high[left[~before]] = middle[~before]
            left = left[low[left] < high[left]]
        return low


def as_ids(names: Sequence[str]) -> pa.Array:
    """Ids as the index takes them."""
    return pa.array(names, pa.large_string())


def rows_among(
    ids: pa.ChunkedArray | pa.Array, known: pa.ChunkedArray | pa.Array
) -> Int64[np.ndarray, " N"]:
    """Where each id stands among different ones; MISSING: it does not, or is null."""
    asked, options = _letters(ids), pc.SetLookupOptions(_letters(known))
    found: Any = pc.call_function("index_in", [asked], options)
    return found.fill_null(MISSING).to_numpy(zero_copy_only=False).astype(np.int64)


def _letters(ids: pa.ChunkedArray | pa.Array) -> pa.Array:
    whole = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return whole.cast(pa.large_string())


def hashes_of(ids: pa.Array) -> UInt64[np.ndarray, " N"]:
    """A hash of the bytes of each id; different ids may have the same."""
    _, offsets, content = ids.buffers()
    ends = np.frombuffer(offsets, np.int64, len(ids) + 1, 8 * ids.offset)
    letters = np.frombuffer(content or b"", np.uint8)
    chunks = range(0, len(ids), _CHUNK_ROWS)
    hashed = [_hashed(letters, ends[at : at + _CHUNK_ROWS + 1]) for at in chunks]
    return np.concatenate([np.zeros(0, np.uint64), *hashed])


def _hashed(letters: np.ndarray, ends: Int64[np.ndarray, " _"]) -> UInt64[np.ndarray, " N"]:
    """Mixes in eight bytes at a time of all ids that are so long."""
    starts, stops = ends[:-1], ends[1:]
    found = (stops - starts).astype(np.uint64) * _ODD
    for skipped in range(0, int((stops - starts).max(initial=0)), _WORD):
        left = np.flatnonzero(stops - starts > skipped)
        at = (starts[left] + skipped)[:, None] + np.arange(_WORD)[None, :]
        inside = at < stops[left][:, None]
        word = np.where(inside, letters[np.minimum(at, len(letters) - 1)], 0).astype(np.uint8)
        mixed = (found[left] ^ word.view("<u8")[:, 0]) * _ODD
        found[left] = mixed ^ (mixed >> np.uint64(32))
    return found
