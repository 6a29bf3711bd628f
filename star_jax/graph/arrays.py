"""Writes npy files piece by piece, with plain writes: a full disk is an error, not a signal.

Writing through a memory map would end the process by SIGBUS when the disk is full.
"""

import io
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.lib import format as npy


class ArrayFile:
    """An npy file of known shape, appended to along the first axis."""

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self._dtype, self._shape = np.dtype(dtype), shape
        self._filled = 0
        self._path = path
        self._file = path.open("wb")
        self._file.write(_header(self._dtype, shape))

    def append(self, rows: np.ndarray) -> None:
        """Writes the next rows."""
        assert rows.shape[1:] == self._shape[1:], f"{self._path}: {rows.shape}, {self._shape}"
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self._filled += len(rows)

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if error is None:
            assert self._filled == self._shape[0], f"{self._path}: {self._filled} of {self._shape}"


class ColumnFiles:
    """One npy file per column, all of one length."""

    def __init__(self, folder: Path, dtypes: Mapping[str, np.dtype], num_rows: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {
            name: ArrayFile(folder / f"{name}.npy", dtype, (num_rows,))
            for name, dtype in dtypes.items()
        }

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Writes the columns that have a file; others are ignored."""
        for name, file in self._files.items():
            file.append(columns[name])

    def __enter__(self) -> "ColumnFiles":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.__exit__(kind, error, trace)


def release(array: np.ndarray) -> None:
    """Lets go of the pages of a mapped file that were read; what is no map stays as it is."""
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def file_bytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Length of the npy file of an array."""
    return len(_header(dtype, shape)) + math.prod(shape) * dtype.itemsize


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    content = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    written = io.BytesIO()
    npy.write_array_header_1_0(written, content)
    return written.getvalue()


def scratch_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros in a file of their own, with the disk space taken at once."""
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if num_bytes == 0:
        return np.zeros(shape, dtype)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    return np.memmap(path, dtype, mode="r+", shape=shape)
