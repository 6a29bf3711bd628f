"""A scratch folder that several processes share: one of them at a time may put it in order."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from star_jax.parallel import processes


@contextmanager
def alone(scratch: Path) -> Iterator[None]:
    """Waits for the other processes that want to be alone; ends with the process at the latest."""
    while True:
        scratch.mkdir(parents=True, exist_ok=True)
        handle = os.open(scratch, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_at(handle, scratch):
            break
        os.close(handle)  # Whoever was alone before has removed the folder.
    try:
        yield
    finally:
        if _is_at(handle, scratch) and not any(scratch.iterdir()):
            scratch.rmdir()
        os.close(handle)


@contextmanager
def together(scratch: Path) -> Iterator[None]:
    """The processes of one job are alone with a folder, which the first one holds for all.

    All call it.
    """
    if processes.is_first():
        with alone(scratch):
            processes.meet()
            yield
        return
    processes.meet()
    yield


def clear(scratch: Path) -> None:
    """Removes the folder, what abandoned work left there too; for whoever is alone."""
    shutil.rmtree(scratch)


def _is_at(handle: int, path: Path) -> bool:
    """Whether a path still leads to what was opened."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
