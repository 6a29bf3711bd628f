"""What every store does, on LMDB and on a real Redis server."""

import itertools
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.embeddings.records import Record, content_key, encode, replaces, row_key, row_prefix
from star_jax.serving.stores.lmdb_store import LmdbStore
from star_jax.serving.stores.protocol import BATCH_KEYS
from star_jax.serving.stores.redis_store import RedisStore
from star_jax.serving.stores.urls import is_store, open_store

pytestmark = pytest.mark.extra("stores")


@pytest.fixture(params=["lmdb", "redis"])
def store(request, tmp_path):
    if request.param == "lmdb":
        url = f"lmdb:{tmp_path / 'store'}"
    else:
        url = request.getfixturevalue("redis_url")
    opened = open_store(url, writable=True)
    if isinstance(opened, RedisStore):
        opened._client.flushdb()
    yield opened
    opened.close()


def record(time, value=1.0, **fields):
    return Record("v1", time, np.full(3, value, np.float32), **fields)


def same(found, expected):
    assert (found is None) == (expected is None)
    if found is not None:
        assert encode(found) == encode(expected)


def times(store, asked):
    return [found.event_time for found in store.get_many(asked) if found is not None]


def keys(number, node_type="job"):
    return [row_key("v1", node_type, f"id{i}") for i in range(number)]


def test_what_is_put_is_got_in_the_order_asked_for(store):
    items = [(key, record(i, i)) for i, key in enumerate(keys(250))]
    assert store.put_many(items) == 250
    asked = [items[7][0], b"nothing", items[0][0], items[7][0]]
    for found, expected in zip(
        store.get_many(asked), [items[7][1], None, items[0][1], items[7][1]], strict=True
    ):
        same(found, expected)
    assert store.get_many([]) == []
    assert store.put_many([]) == 0


def test_the_last_event_time_wins_in_whatever_order(store):
    """Against the definition: the record that replaces all others."""
    made = [record(t, v) for t in (-(2**63), -1, 0, 2**53, 2**53 + 1, 2**62) for v in (1, 2)]
    made.append(Record("v1", 2**53 + 1, None))
    rng = random.Random(0)
    for trial, key in enumerate(keys(20)):
        chosen = rng.sample(made, 4)
        for one in chosen:
            store.put_many([(key, one)])
        last = chosen[0]
        for one in chosen[1:]:
            last = one if replaces(encode(one), encode(last)) else last
        same(store.get_many([key])[0], last if last.vector is not None else None)
        assert store.put_many([(key, one) for one in chosen]) == 0, trial


def test_one_call_may_name_a_key_twice(store):
    key = content_key(bytes(range(16)))
    assert store.put_many([(key, record(1)), (key, record(3)), (key, record(2))]) == 2
    same(store.get_many([key])[0], record(3))


def test_a_deletion_refuses_what_is_late(store):
    key, other = keys(2)
    store.put_many([(key, record(5)), (other, record(9))])
    later = int(time.time() * 1000) + 100_000
    assert store.delete_many([key, other, b"unknown"], 7, later) == 2
    assert [found is None for found in store.get_many([key, other])] == [True, False]
    assert store.put_many([(key, record(6))]) == 0
    assert store.put_many([(key, record(8))]) == 1
    same(store.get_many([key])[0], record(8))


def test_what_expired_is_gone_and_may_be_older_again(store):
    now = int(time.time() * 1000)
    short, long, never = keys(3)
    store.put_many(
        [
            (short, record(5, expires_ms=now + 300)),
            (long, record(5, expires_ms=now + 100_000)),
            (never, record(5)),
        ]
    )
    assert None not in store.get_many([short, long, never])
    while time.time() * 1000 < now + 320:
        time.sleep(0.01)
    assert [found is None for found in store.get_many([short, long, never])] == [True, False, False]
    assert {key for key, _ in store.scan(b"")} == {long, never}
    assert store.put_many([(short, record(1))]) == 1
    same(store.get_many([short])[0], record(1))


def test_writing_anew_prolongs_a_life(store):
    now = int(time.time() * 1000)
    (key,) = keys(1)
    for later, accepted in ((300, 1), (100_000, 1), (50_000, 0)):
        assert store.put_many([(key, record(5, expires_ms=now + later))]) == accepted
    time.sleep(max(0.0, now / 1000 + 0.32 - time.time()))
    same(store.get_many([key])[0], record(5, expires_ms=now + 100_000))


@pytest.mark.parametrize("odd", ["[a]*?\\", "plain"])
def test_a_scan_gives_all_of_a_prefix(store, odd):
    number = 2 * BATCH_KEYS + 1
    expected = keys(number, odd)
    store.put_many([(key, record(i)) for i, key in enumerate(expected)])
    store.put_many([(key, record(0)) for key in (*keys(5), content_key(bytes(16)), b"zz")])
    store.delete_many(expected[:1], 10**6, 2**50)
    found = dict(store.scan(row_prefix("v1", odd)))
    assert sorted(found) == sorted(expected[1:])
    same(found[expected[4]], record(4))
    assert len(dict(store.scan(b""))) == number - 1 + 7


def test_threads_share_a_store(store):
    """Each writes its own times of the same keys; the last of all is there in the end."""
    all_keys, errors = keys(60), []

    def work(worker):
        try:
            for round_ in range(8):
                at = 10 * round_ + worker
                store.put_many([(key, record(at, at)) for key in all_keys])
                for found in store.get_many(all_keys):
                    assert found is not None
                    assert found.event_time >= at
                    assert (found.vector == found.event_time).all()
        except (AssertionError, InputError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert set(times(store, all_keys)) == {73}


def test_a_damaged_record_is_named(store, redis_url):
    (key,) = keys(1)
    content = bytearray(encode(record(1)))
    content[-1] ^= 1
    if isinstance(store, LmdbStore):
        with store._env.begin(write=True) as transaction:
            transaction.put(key, bytes(content))
    else:
        store._client.set(key, bytes(content))
    with pytest.raises(InputError, match=r"holds under b'ev1.*does not have the checksum"):
        store.get_many([key])


BESIDE = """
import sys
import numpy as np
from star_jax.embeddings.records import Record
from star_jax.serving.stores.urls import open_store
store, writes, seen = open_store(sys.argv[1], writable=True), sys.argv[2] == "write", [-1] * 20
at = 1
while min(seen) < 199:
    if writes and at < 200:
        vector = np.full(50, at, np.float32)
        store.put_many([(b"k%d" % i, Record("v", at, vector)) for i in range(20)])
        at += 2
    for i, one in enumerate(store.get_many([b"k%d" % i for i in range(20)])):
        if one is not None:
            assert one.event_time >= seen[i], "went back"
            assert (one.vector == one.event_time).all(), "torn"
            seen[i] = one.event_time
"""


def test_processes_read_beside_others_that_write(store, request):
    """Two writers of alternating times, three readers: none sees a key go back, or half of one."""
    url = f"lmdb:{store.name}"
    if not isinstance(store, LmdbStore):
        url = request.getfixturevalue("redis_url")
    store.put_many([(b"begun", record(0))])
    processes = [
        subprocess.Popen([sys.executable, "-c", BESIDE, url, does], stderr=subprocess.PIPE)
        for does in ("write", "read")
    ]
    last = [-1]
    for at in range(0, 200, 2):
        store.put_many([(b"k%d" % i, record(at, at)) for i in range(20)])
        last += times(store, [b"k0"])
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    assert last == sorted(last)
    assert times(store, [b"k0", b"k19"]) == [199, 199]


def test_urls_name_stores():
    assert [is_store(url) for url in ("lmdb:/a", "redis://h:1/0", "valkey://h", "s3://b", "a")] == [
        *(True, True, True, False, False)
    ]
    with pytest.raises(InputError, match=r"'s3://b' is no store, needed lmdb:FOLDER or redis://"):
        open_store("s3://b")
    with pytest.raises(InputError, match="'lmdb' is no store"):
        open_store("lmdb")


def test_keys_are_short(store):
    for key in (b"", b"x" * 512):
        with pytest.raises(ValueError, match=f"a key of {len(key)} bytes, needed 1 to 511"):
            store.put_many([(key, record(1))])
        with pytest.raises(ValueError, match="a key of"):
            store.get_many([key])


def test_orders_of_calls_do_not_matter(store):
    made = [record(t, v) for t, v in ((1, 1), (1, 2), (2, 3))]
    ends = []
    for number, order in enumerate(itertools.permutations(made)):
        key = b"order%d" % number
        for one in order:
            store.put_many([(key, one)])
        ends.append(encode(store.get_many([key])[0]))
    assert len(set(ends)) == 1
