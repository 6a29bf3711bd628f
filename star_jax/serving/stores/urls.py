"""Opens a store by its URL: `lmdb:FOLDER`, or `redis://HOST:PORT/DB` and what else means Redis."""

from pathlib import Path

from star_jax.config import InputError
from star_jax.serving.stores.lmdb_store import LmdbStore
from star_jax.serving.stores.protocol import Store
from star_jax.serving.stores.redis_store import RedisStore

_SCHEMES = ("lmdb", "redis", "rediss", "valkey", "valkeys", "unix")


def open_store(url: str, *, writable: bool = False) -> Store:
    """Opens `lmdb:FOLDER` or `redis://HOST:PORT/DB` (also rediss, valkey, valkeys, unix).

    Args:
      url: Which store.
      writable: Makes a folder that is not there; without, LMDB refuses to write. Users of a Redis
        server have their rights there.

    Raises:
      InputError: The URL names no store, or it is not there.
    """
    if not is_store(url):
        raise InputError(f"{url!r} is no store, needed lmdb:FOLDER or redis://HOST:PORT/DB")
    if url.startswith("lmdb:"):
        return LmdbStore(Path(url.removeprefix("lmdb:")), writable=writable)
    return RedisStore(url.replace("valkey", "redis", 1) if url.startswith("valkey") else url)


def is_store(url: str) -> bool:
    """Whether a text is the URL of a store."""
    return ":" in url and url.partition(":")[0] in _SCHEMES
