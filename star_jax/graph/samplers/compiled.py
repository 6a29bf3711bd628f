"""Compiles the samplers' inner loops: serial, without the GIL, so that threads run in parallel."""

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache

Compiled = Callable[..., Any]
"""A function of arrays, numbers and named tuples of them; also callable from compiled ones."""

_log = logging.getLogger(__name__)


def _sources() -> str:
    """Digest of everything that is inlined here."""
    sha = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()


class _Cache(FunctionCache):
    """Machine code on disk for one state of all sources, since functions inline each other.

    Numba by itself only notices changes of the file that a function stands in, and takes a
    function that is made anew in every process, for another function it calls, as a new one.
    """

    _digest = _sources()

    def __init__(self, function: Compiled, calls: str) -> None:
        super().__init__(function)
        self._calls = calls

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return sig, codegen.magic_tuple(), self._calls, self._digest


def kernel(function: Compiled, calls: str = "", *, makes_arrays: bool = False) -> Compiled:
    """Compiles a function; the machine code is cached beside the source or in the user's cache.

    Args:
      function: Of a module, or made by another function.
      calls: Names the function it was made for, if any.
      makes_arrays: Whether it makes arrays, for which numba counts the references to every array
        it touches; without, the walk over edges is several times as fast.
    """
    options: dict[str, Any] = {"nogil": True, "forceinline": True, "_nrt": makes_arrays}
    compiled: Any = njit(**options)(function)
    try:
        compiled._cache = _Cache(function, calls)
    except RuntimeError as error:  # Read-only installation without a home: compile every time.
        _log.info("numba: %s; set NUMBA_CACHE_DIR to keep compiled code", error)
    return compiled


array_kernel = functools.partial(kernel, makes_arrays=True)
"""`kernel`, for functions that make arrays."""
