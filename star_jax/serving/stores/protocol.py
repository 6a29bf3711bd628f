"""What a store of embeddings does, whichever it is; `urls.open_store` opens one."""

import abc
import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from star_jax.config import InputError
from star_jax.embeddings.records import DamagedRecordError, Record, decode

BATCH_KEYS: Final = 1000
"""Keys that a store handles at a time, where it is free to choose."""

_EXTRA = "the extra `stores`: pip install 'star_jax[stores]'"


class Store(abc.ABC):
    """Records by key (`star_jax.embeddings.records` has the layouts of both).

    A store may be shared by threads. What goes wrong with it is an `InputError` that names it.
    """

    def get_many(self, keys: Sequence[bytes]) -> list[Record | None]:
        """The record of each key; None where there is none, or it is deleted or expired.

        Raises:
          InputError: A record is damaged.
        """
        return [self._open(key, found) for key, found in zip(keys, self._read(keys), strict=True)]

    @abc.abstractmethod
    def put_many(self, items: Sequence[tuple[bytes, Record]]) -> int:
        """Writes records whose event time is the last of their key.

        An earlier one is left out, as is one that is there already: writing anew after a failure
        does no harm, nor do two writers. What was accepted when this returns is not lost if this
        process is killed; what else it survives, the store's module says. Of the records of a call
        that failed, some may be there; none is there in part.

        Returns:
          How many took a place.
        """

    def delete_many(
        self, keys: Sequence[bytes], event_time: int, expires_ms: int, version: str = ""
    ) -> int:
        """Deletes what is not younger than the deletion, and refuses what is older from now on.

        Args:
          keys: Need not be there.
          event_time: Of the deletion.
          expires_ms: Until when the deletion is remembered: beyond all writes that may be late.
          version: To note with it.

        Returns:
          How many deletions took a place.
        """
        gone = Record(version, event_time, None, expires_ms)
        return self.put_many([(key, gone) for key in keys])

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, Record]]:
        """All that is there under keys that begin with a prefix.

        What is written meanwhile may be among them or not. Redis may name a key more than once.
        """
        for key, content in self._walk(prefix):
            if record := self._open(key, content):
                yield key, record

    @abc.abstractmethod
    def sweep(self) -> int:
        """Frees the room of expired records, where the store does not do so by itself.

        Returns:
          How many it removed.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the use of the store."""

    @abc.abstractmethod
    def _read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What is there and has not expired."""

    @abc.abstractmethod
    def _walk(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """As `scan`, encoded."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Of the store, for messages."""

    def _open(self, key: bytes, content: bytes | None) -> Record | None:
        if content is None:
            return None
        try:
            record = decode(content)
        except DamagedRecordError as error:
            raise InputError(
                f"{self.name} holds under {key!r} {error}; delete it and write it anew"
            ) from error
        return None if record.vector is None else record


def imported(library: str) -> Any:
    """A library of the extra.

    Raises:
      InputError: It is not installed.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise InputError(f"{library} is not installed, needed {_EXTRA}") from error
