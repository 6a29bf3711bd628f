"""Arrays in memory that earlier arrays have left: the pages of new memory cost more than sampling.

An array of `zeros` or `empty` is as any other. When nothing refers to it or to a view of it, its
memory goes to the next array of the same size.
"""

import math
import threading
from collections import OrderedDict, deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

_LEAST = 1 << 16  # Bytes; smaller arrays are left to the allocator, which keeps their pages.
_ALIGNED = 64  # What JAX asks of memory that it takes over without a copy.


class _Lease:
    """Keeps a block out of the pool as long as an array refers to it."""

    def __init__(self, pool: "Pool", block: np.ndarray, size: int) -> None:
        self._pool, self._block = pool, block
        start = -block.ctypes.data % _ALIGNED
        self.__array_interface__: dict[str, Any] = block[start : start + size].__array_interface__

    def __del__(self) -> None:
        self._pool.returned.append(self._block)  # Atomic: a collection may run this anywhere.


class Pool:
    """Blocks of memory, held or free; all together never more than were held at one time.

    Attributes:
      returned: Blocks that nobody holds, not yet sorted in.
    """

    def __init__(self) -> None:
        self.returned: deque[np.ndarray] = deque()
        self._lock = threading.Lock()
        self._free: OrderedDict[int, list[np.ndarray]] = OrderedDict()  # By size, least used first.
        self._held = self._total = self._most = 0  # Bytes.

    @property
    def num_bytes(self) -> int:
        """Held and free ones together."""
        return self._total

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array whose content is arbitrary."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if size < _LEAST:
            return np.empty(shape, kind)
        with self._lock:
            block = self._take(size + _ALIGNED)
        return np.asarray(_Lease(self, block, size)).view(kind).reshape(shape)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array of zeros."""
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def stack(self, *parts: np.ndarray) -> np.ndarray:
        """Arrays of one shape under a new first axis; of a single one no copy."""
        if len(parts) == 1:
            return parts[0][None]
        return np.stack(parts, out=self.empty((len(parts), *parts[0].shape), parts[0].dtype))

    def _take(self, size: int) -> np.ndarray:
        while self.returned:
            block = self.returned.popleft()
            self._held -= block.nbytes
            self._free.setdefault(block.nbytes, []).append(block)
        self._held += size
        self._most = max(self._most, self._held)
        same = self._free.get(size)
        if same:
            block = same.pop()
            if same:
                self._free.move_to_end(size)
            else:
                del self._free[size]
            return block
        while self._free and self._total + size > self._most:
            oldest, blocks = next(iter(self._free.items()))
            blocks.pop()
            self._total -= oldest
            if not blocks:
                del self._free[oldest]
        self._total += size
        return np.empty(size, np.uint8)


POOL = Pool()
"""Of this process."""
