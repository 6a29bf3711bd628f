import signal
import subprocess
import sys

import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.embeddings.records import Record
from star_jax.serving.stores import lmdb_store
from star_jax.serving.stores.lmdb_store import LmdbStore
from star_jax.serving.stores.protocol import BATCH_KEYS
from star_jax.serving.stores.urls import open_store

pytestmark = pytest.mark.extra("stores")


def record(time, size=100, **fields):
    return Record("v", time, np.full(size, time, np.float32), **fields)


def key(number):
    return f"k{number:06d}".encode()


def test_the_map_grows_as_needed(tmp_path):
    """One batch alone is larger than the whole map was."""
    store = LmdbStore(tmp_path / "s", writable=True, first_bytes=1 << 16)
    items = [(key(i), record(i)) for i in range(2000)]
    assert store.put_many(items) == 2000
    assert store._env.info()["map_size"] > 800_000
    assert [one.event_time for one in store.get_many([key(0), key(1999)]) if one] == [0, 1999]


def test_a_reader_follows_a_map_that_another_process_grew(tmp_path):
    store = LmdbStore(tmp_path / "s", writable=True, first_bytes=1 << 16)
    store.put_many([(key(0), record(0))])
    code = """
import pathlib, sys
from star_jax.serving.stores.lmdb_store import LmdbStore
store = LmdbStore(pathlib.Path(sys.argv[1]), writable=False, first_bytes=1 << 16)
print(store._env.info()["map_size"], flush=True)
sys.stdin.readline()
print(store.get_many([b"k001999"])[0].event_time, len(dict(store.scan(b"k"))), flush=True)
"""
    reader = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "s"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    before = int(reader.stdout.readline())
    store.put_many([(key(i), record(i)) for i in range(2000)])
    assert store._env.info()["map_size"] > before
    assert reader.communicate("go\n", timeout=60)[0] == "1999 2000\n"


def test_a_scan_may_go_on_while_the_map_grows(tmp_path):
    store = LmdbStore(tmp_path / "s", writable=True, first_bytes=1 << 18)
    store.put_many([(key(i), record(i, 1)) for i in range(BATCH_KEYS + 5)])
    scan = store.scan(b"k")
    seen = [next(scan)[0]]
    store.put_many([(b"other%d" % i, record(i)) for i in range(3000)])
    seen += [name for name, _ in scan]
    assert seen == [key(i) for i in range(BATCH_KEYS + 5)]


def test_a_sweep_removes_what_has_expired_and_nothing_else(tmp_path):
    clock = [0.0]
    store = LmdbStore(tmp_path / "s", writable=True, now_s=lambda: clock[0])
    number = 2 * BATCH_KEYS + 7
    store.put_many([(key(i), record(i, expires_ms=1000 * (i % 3 + 1))) for i in range(number)])
    clock[0] = 2.0
    expected = [key(i) for i in range(number) if i % 3 == 2]
    assert [name for name, _ in store.scan(b"")] == expected
    assert store._env.stat()["entries"] == number
    assert store.sweep() == number - len(expected)
    assert store._env.stat()["entries"] == len(expected)
    assert [name for name, _ in store.scan(b"")] == expected
    assert store.sweep() == 0
    clock[0] = 3.0
    assert store.sweep() == len(expected)  # The last key of all among them.


def test_room_of_what_was_removed_is_used_again(tmp_path):
    clock = [0.0]
    store = LmdbStore(tmp_path / "s", writable=True, first_bytes=1 << 20, now_s=lambda: clock[0])
    for round_ in range(12):
        clock[0] = float(round_)
        store.sweep()
        items = [(key(i), record(i, expires_ms=1000 * (round_ + 1))) for i in range(500)]
        assert store.put_many(items) == 500
    assert store._env.info()["map_size"] <= 2 << 20


def test_all_of_a_call_is_there_or_nothing(tmp_path, monkeypatch):
    store = LmdbStore(tmp_path / "s", writable=True)
    real, calls = lmdb_store.replaces, []

    def breaking(new, old):
        calls.append(new)
        if len(calls) == 3:
            raise OSError("the disk is full")
        return real(new, old)

    store.put_many([(key(i), record(1)) for i in range(5)])
    monkeypatch.setattr(lmdb_store, "replaces", breaking)
    with pytest.raises(OSError, match="the disk is full"):
        store.put_many([(key(i), record(2)) for i in range(5)])
    assert {one.event_time for one in store.get_many([key(i) for i in range(5)]) if one} == {1}


def test_a_reader_makes_and_changes_nothing(tmp_path):
    with pytest.raises(InputError, match=r"s holds no LMDB store; load it with `star publish`"):
        open_store(f"lmdb:{tmp_path / 's'}")
    assert not (tmp_path / "s").exists()
    writer = open_store(f"lmdb:{tmp_path / 's'}", writable=True)
    writer.put_many([(key(0), record(0))])
    writer.close()
    reader = open_store(f"lmdb:{tmp_path / 's'}")
    with pytest.raises(InputError, match=r"s: .*"):
        reader.put_many([(key(0), record(1))])
    same = reader.get_many([key(0)])[0]
    assert same is not None
    assert same.event_time == 0


def test_a_sweep_forgets_killed_readers(tmp_path):
    store = LmdbStore(tmp_path / "s", writable=True)
    code = """
import os, signal, sys
from star_jax.serving.stores.urls import open_store
store = open_store("lmdb:" + sys.argv[1])
reading = store._env.begin()
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.Popen([sys.executable, "-c", code, tmp_path / "s"])
    assert killed.wait() == -signal.SIGKILL
    assert f"{killed.pid} " in store._env.readers()
    store.sweep()
    assert f"{killed.pid} " not in store._env.readers()


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"no store" * 1000)
    with pytest.raises(InputError, match="is not readable as an LMDB store"):
        open_store(f"lmdb:{tmp_path}")


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(InputError, match=r"lmdb is not installed, needed the extra `stores`: pip"):
        open_store("lmdb:anywhere")
