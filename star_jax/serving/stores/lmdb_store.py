"""Embeddings in LMDB: a folder that many processes read while one writes.

`put_many` returns when its records are on the disk (LMDB's commit with fsync): they survive a kill
of the process and, as far as the disk keeps its word, a loss of power. A transaction that was not
committed leaves no trace. Writers of several processes wait for each other, readers for nobody.

The file never shrinks: the room of what was deleted or swept is used again.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from star_jax.config import InputError
from star_jax.embeddings.records import Record, checked_key, encode, expires_ms, replaces
from star_jax.serving.stores.protocol import BATCH_KEYS, Store, imported

T = TypeVar("T")

FIRST_BYTES: Final = 64 << 20
"""Size of the map of a new store; it doubles whenever it is full."""

_READERS = 1024  # Threads and processes that may read at once.


class LmdbStore(Store):
    """A store in a folder of its own.

    A process opens a folder once; its threads share the store.
    """

    def __init__(
        self,
        folder: Path,
        *,
        writable: bool,
        first_bytes: int = FIRST_BYTES,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """Opens or, for writing, makes it.

        Args:
          folder: Of the store.
          writable: A reader cannot write by accident.
          first_bytes: Size of the map of a new store.
          now_s: The clock by which records expire.

        Raises:
          InputError: There is no store to read, or it is none.
        """
        self._lmdb, self._folder, self._now_s = imported("lmdb"), folder, now_s
        # The map may move when it grows: no transaction of this process may be open then.
        self._lock = threading.Lock()
        data = folder / "data.mdb"
        if not writable and not data.is_file():
            raise InputError(f"{folder} holds no LMDB store; load it with `star publish` first")
        if writable:
            folder.mkdir(parents=True, exist_ok=True)
        size = max(first_bytes, data.stat().st_size if data.is_file() else 0)
        try:
            self._env = self._lmdb.open(
                str(folder), map_size=size, readonly=not writable, max_readers=_READERS
            )
        except self._lmdb.Error as error:
            raise InputError(f"{folder} is not readable as an LMDB store ({error})") from error

    @property
    def name(self) -> str:
        """The folder."""
        return str(self._folder)

    def put_many(self, items: Sequence[tuple[bytes, Record]]) -> int:
        """As `Store.put_many`, in one transaction: all of a call is there, or nothing."""
        encoded = [(checked_key(key), encode(record)) for key, record in items]
        return self._do(lambda transaction: self._put(transaction, encoded), write=True)

    def sweep(self) -> int:
        """Removes what has expired, a thousand keys per transaction; forgets killed readers.

        What one of them was reading could not be used again.
        """
        with self._lock:
            self._env.reader_check()
        removed, at = 0, b""
        while at is not None:
            number, at = self._do(lambda t, at=at: self._sweep_from(t, at), write=True)
            removed += number
        return removed

    def close(self) -> None:
        """Closes the files."""
        with self._lock:
            self._env.close()

    def _read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        def read(transaction: Any) -> list[bytes | None]:
            now = self._now_ms()
            found = (transaction.get(checked_key(key)) for key in keys)
            return [content if content and expires_ms(content) > now else None for content in found]

        return self._do(read)

    def _walk(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Page by page: a reader that stays open keeps old pages alive and the map from growing."""
        page, at = [], prefix
        while at is not None:
            page, at = self._do(lambda transaction, at=at: self._page(transaction, prefix, at))
            yield from page

    def _put(self, transaction: Any, encoded: list[tuple[bytes, bytes]]) -> int:
        now, number = self._now_ms(), 0
        for key, content in encoded:
            old = transaction.get(key)
            if old is None or expires_ms(old) <= now or replaces(content, old):
                transaction.put(key, content)
                number += 1
        return number

    def _page(
        self, transaction: Any, prefix: bytes, at: bytes
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Records from a key on, and where the next page begins."""
        now, page, cursor = self._now_ms(), [], transaction.cursor()
        more = cursor.set_range(at) if at else cursor.first()
        for seen in range(BATCH_KEYS + 1):
            if not more or not cursor.key().startswith(prefix):
                return page, None
            if seen == BATCH_KEYS:
                break
            if expires_ms(cursor.value()) > now:
                page.append(cursor.item())
            more = cursor.next()
        return page, cursor.key()

    def _sweep_from(self, transaction: Any, at: bytes) -> tuple[int, bytes | None]:
        """Removes of the keys from one on what has expired; the key to go on from."""
        now, removed, cursor = self._now_ms(), 0, transaction.cursor()
        more = cursor.set_range(at) if at else cursor.first()
        for _ in range(BATCH_KEYS):
            if not more:
                return removed, None
            if expires_ms(cursor.value()) <= now:
                removed += 1
                more = cursor.delete()  # Moves on to the next key.
                more = more and bool(cursor.key())
            else:
                more = cursor.next()
        return removed, cursor.key() if more else None

    def _do(self, work: Callable[[Any], T], *, write: bool = False) -> T:
        """Runs a transaction; again with a larger map, where it was too small."""
        with self._lock:
            while True:
                try:
                    with self._env.begin(write=write) as transaction:
                        return work(transaction)
                except self._lmdb.MapFullError:
                    self._env.set_mapsize(2 * self._env.info()["map_size"])
                except self._lmdb.MapResizedError:  # By another process.
                    self._env.set_mapsize(0)
                except self._lmdb.Error as error:
                    raise InputError(f"{self.name}: {error}") from error

    def _now_ms(self) -> int:
        return int(self._now_s() * 1000)
