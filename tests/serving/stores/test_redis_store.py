import sys

import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.embeddings.records import Record
from star_jax.serving.stores.redis_store import RedisStore
from star_jax.serving.stores.urls import open_store
from tests.serving.stores import servers

pytestmark = pytest.mark.extra("stores")


def record(time):
    return Record("v", time, np.full(3, time, np.float32))


def test_nobody_answers():
    port = servers.free_port()
    with pytest.raises(InputError, match=rf"redis localhost:{port} db 3: .*refused"):
        open_store(f"redis://:secret@localhost:{port}/3")


def test_valkey_is_the_same(redis_url):
    store = open_store(redis_url.replace("redis", "valkey"))
    assert store.put_many([(b"a", record(1))]) == 1


def test_a_key_of_something_else_is_named(redis_url):
    store = RedisStore(redis_url)
    store._client.delete(b"list")
    store._client.lpush(b"list", b"x")
    with pytest.raises(InputError, match=r"redis 127.0.0.1:\d+ db 0: WRONGTYPE"):
        store.put_many([(b"list", record(1))])


def test_no_url(redis_url):
    with pytest.raises(InputError, match="is no URL of a Redis server"):
        open_store("redis://localhost:port/0")


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(InputError, match=r"redis is not installed, needed the extra `stores`: pip"):
        open_store("redis://anywhere")
