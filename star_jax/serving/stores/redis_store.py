"""Embeddings in Redis, or in Valkey, which speaks the same.

Whether a record takes a place is decided by a script inside the server, so that writers need no
locks. A server of the version 6.2 or later, not in cluster mode: a call's keys must be on one node.

`put_many` returns when the server has answered: a killed client loses nothing. What a killed or
failed server keeps is up to its settings: with `appendonly yes` and `appendfsync always`, all that
was acknowledged; with `everysec`, all but the last second or two; without, the last snapshot.
Records expire in the server, by its clock.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar, cast

from star_jax.config import InputError
from star_jax.embeddings.records import NEVER_MS, ORDER_BYTES, Record, checked_key, encode
from star_jax.serving.stores.protocol import BATCH_KEYS, Store, imported

T = TypeVar("T")

SCRIPT_KEYS: Final = 100
"""Keys per call of the script: others wait while the server runs it."""

_PUT: Final = f"""
local number = 0
for i = 1, #KEYS do
  local new, expires = ARGV[2 * i - 1], ARGV[2 * i]
  local old = redis.call('GETRANGE', KEYS[i], 0, {ORDER_BYTES - 1})
  local replaces = false
  if #old == 0 then
    replaces = true
  else
    for at = 1, {ORDER_BYTES} do  -- By bytes: `<` of two strings goes by the server's locale.
      local ours, theirs = new:byte(at), old:byte(at)
      if ours ~= theirs then
        replaces = theirs == nil or ours > theirs
        break
      end
    end
  end
  if replaces then
    if expires == '' then
      redis.call('SET', KEYS[i], new)
    else
      redis.call('SET', KEYS[i], new, 'PXAT', expires)
    end
    number = number + 1
  end
end
return number
"""


class RedisStore(Store):
    """A database of a server."""

    def __init__(self, url: str) -> None:
        """Connects.

        Raises:
          InputError: The URL is none, or nobody answers.
        """
        self._redis = imported("redis")
        try:
            self._client = self._redis.Redis.from_url(url)
        except ValueError as error:
            raise InputError(f"{url!r} is no URL of a Redis server ({error})") from error
        place = self._client.connection_pool.connection_kwargs
        where = place.get("path") or f"{place.get('host', 'localhost')}:{place.get('port', 6379)}"
        self._name = f"redis {where} db {place.get('db', 0)}"  # Not the URL: it has the password.
        self._do(self._client.ping)
        self._put = self._client.register_script(_PUT)

    @property
    def name(self) -> str:
        """Host, port and database."""
        return self._name

    def put_many(self, items: Sequence[tuple[bytes, Record]]) -> int:
        """As `Store.put_many`; all calls of the script are on their way at once."""

        def put() -> int:
            with self._client.pipeline(transaction=False) as pipeline:
                for start in range(0, len(items), SCRIPT_KEYS):
                    batch = items[start : start + SCRIPT_KEYS]
                    given = [part for _, record in batch for part in _arguments(record)]
                    names = [checked_key(key) for key, _ in batch]
                    self._put(keys=names, args=given, client=pipeline)
                answers = pipeline.execute(raise_on_error=False)  # That error quotes all bytes.
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            return sum(answers)

        return self._do(put)

    def sweep(self) -> int:
        """Nothing: the server removes what has expired."""
        return 0

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        names = [checked_key(key) for key in keys]
        return cast("list[bytes | None]", self._do(lambda: self._client.mget(names)))

    def _walk(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        pattern = b"".join(b"\\" + c if c in b"*?[]\\^-" else c for c in _bytes(prefix)) + b"*"
        cursor = 0
        while True:
            cursor, keys = self._do(
                lambda at=cursor: self._client.scan(at, match=pattern, count=BATCH_KEYS)
            )
            for key, content in zip(keys, self._read(keys), strict=True):
                if content is not None:  # It may be gone by now.
                    yield key, content
            if not cursor:
                return

    def _do(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except self._redis.RedisError as error:
            raise InputError(f"{self.name}: {error}") from error


def _arguments(record: Record) -> tuple[bytes, Any]:
    return encode(record), "" if record.expires_ms == NEVER_MS else record.expires_ms


def _bytes(content: bytes) -> Iterator[bytes]:
    return (content[i : i + 1] for i in range(len(content)))
