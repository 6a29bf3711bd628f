"""A store whose writer, or server, is killed again and again by SIGKILL at random points.

PYTHONPATH=. python tests/serving/stores/kills.py WORKDIR --store lmdb|redis [--kills 20] [--seed 0]

A process writes batch after batch and says so when `put_many` has returned. LMDB's is killed, with
Redis (`appendonly yes`, `appendfsync always`) the server. After every kill the store is read: what
was acknowledged must be there, of the batch under way all or nothing (LMDB) or some (Redis), every
record whole, and nothing else. Prints a line per kill.
"""

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from star_jax.config import InputError
from star_jax.embeddings.records import Record
from star_jax.serving.stores.lmdb_store import LmdbStore
from star_jax.serving.stores.protocol import Store
from star_jax.serving.stores.urls import open_store
from tests.serving.stores import servers

SHARED_KEYS = 40  # Written anew by every batch.
OWN_KEYS = 160  # Of each batch, so that the store grows: two calls of Redis's script.
SIZE = 64
MOST_BATCHES = 12  # That are waited for before a kill.


class Seen(NamedTuple):
    """One kill."""

    acknowledged: int  # Batches, since the beginning.
    amid: str  # What was found of the batch under way: nothing, some, all.
    lost: int  # Records that were acknowledged and are not there as they were.
    torn: int  # Records that are not whole, or half a batch where batches are whole.


def shared_key(number: int) -> bytes:
    return b"shared%d" % number


def own_key(batch: int, number: int) -> bytes:
    return b"own%d-%d" % (batch, number)


def record(batch: int, number: int) -> Record:
    """What a batch writes under its key of a number."""
    return Record("v", batch, np.random.default_rng([batch, number]).random(SIZE, np.float32))


def batch_of(batch: int) -> list[tuple[bytes, Record]]:
    shared = [(shared_key(i), record(batch, i)) for i in range(SHARED_KEYS)]
    return shared + [(own_key(batch, i), record(batch, i)) for i in range(OWN_KEYS)]


def write(url: str, first: int, acknowledge: Callable[[int], object]) -> None:
    """Writes until it is killed, or the server is."""
    store = writer(url)
    for batch in range(first, sys.maxsize):
        store.put_many(batch_of(batch))
        acknowledge(batch)


def writer(url: str) -> Store:
    """Of LMDB, one whose map must grow now and then."""
    if url.startswith("lmdb:"):
        return LmdbStore(Path(url[5:]), writable=True, first_bytes=1 << 16)
    return open_store(url, writable=True)


def started(url: str, first: int) -> tuple[int, int]:
    """A process that writes, and the pipe of its acknowledgements."""
    reads, writes = os.pipe()
    child = os.fork()
    if child:
        os.close(writes)
        return child, reads
    os.close(reads)
    try:
        write(url, first, lambda batch: os.write(writes, batch.to_bytes(8, "big")))
    except InputError:  # The server is gone.
        os._exit(3)
    os._exit(4)


@contextmanager
def served(kind: str, workdir: Path) -> Iterator[tuple[str, int]]:
    """The URL of the store and the process that is to be killed; 0: the writer."""
    if kind == "lmdb":
        yield f"lmdb:{workdir / 'store'}", 0
        return
    options = ("--appendonly", "yes", "--appendfsync", "always")
    server = servers.start(workdir, *options)
    try:
        yield server.url, server.process.pid
    finally:
        server.process.kill()
        server.process.wait()


def kill_one(kind: str, workdir: Path, before: int, rng: random.Random) -> Seen:
    """Starts a writer, kills it or its server, and reads what is left."""
    with served(kind, workdir) as (url, server):
        child, pipe = started(url, before + 1)
        acknowledged, took, began = before, 0.0, time.monotonic()
        for _ in range(rng.randint(1, MOST_BATCHES)):
            acknowledged = int.from_bytes(os.read(pipe, 8), "big")
            took, began = time.monotonic() - began, time.monotonic()
        time.sleep(rng.random() * min(took, 0.1))
        os.kill(server or child, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended == (3 if server else -signal.SIGKILL), f"the writer ended with {ended}"
    while content := os.read(pipe, 8):
        acknowledged = int.from_bytes(content, "big")
    os.close(pipe)
    with served(kind, workdir) as (url, _):
        return look(open_store(url), acknowledged, whole=kind == "lmdb")


def look(store: Store, acknowledged: int, *, whole: bool) -> Seen:
    """Compares all that is there with all that was written."""
    lost, torn = 0, 0
    under_way = acknowledged + 1
    for batch in range(1, acknowledged + 1):
        keys = [own_key(batch, i) for i in range(OWN_KEYS)]
        for i, found in enumerate(store.get_many(keys)):
            lost += found is None or not same(found, record(batch, i))
    new = 0
    for i, found in enumerate(store.get_many([shared_key(i) for i in range(SHARED_KEYS)])):
        expected = [record(batch, i) for batch in (acknowledged, under_way)]
        if found is None or found.event_time < acknowledged:
            lost += 1
        elif not any(same(found, one) for one in expected):
            torn += 1
        else:
            new += found.event_time == under_way
    for i, found in enumerate(store.get_many([own_key(under_way, i) for i in range(OWN_KEYS)])):
        new += found is not None
        torn += found is not None and not same(found, record(under_way, i))
    keys = {key for key, _ in store.scan(b"")}
    torn += len(keys - expected_keys(under_way))
    amid = {0: "nothing", SHARED_KEYS + OWN_KEYS: "all"}.get(new, "some")
    store.close()
    return Seen(acknowledged, amid, lost, torn + (whole and amid == "some"))


def expected_keys(last: int) -> set[bytes]:
    """All that may be there."""
    own = {own_key(batch, i) for batch in range(1, last + 1) for i in range(OWN_KEYS)}
    return own | {shared_key(i) for i in range(SHARED_KEYS)}


def same(found: Record, expected: Record) -> bool:
    """Whether a record is the one that was written."""
    assert found.vector is not None
    assert expected.vector is not None
    return found[:2] == expected[:2] and np.array_equal(found.vector, expected.vector)


def main(workdir: Path, kind: str, kills: int, seed: int) -> bool:
    """Prints what it saw; returns whether nothing was lost or torn."""
    workdir.mkdir(parents=True, exist_ok=True)
    rng, before, all_seen = random.Random(seed), 0, []
    say("kill  acknowledged  under way  lost  torn")
    for number in range(1, kills + 1):
        seen = kill_one(kind, workdir, before, rng)
        # Whoever was killed amid a batch writes it anew.
        before = seen.acknowledged
        all_seen.append(seen)
        say(f"{number:4}  {before:12}  {seen.amid:<9}  {seen.lost:4}  {seen.torn:4}")
    lost, torn = sum(seen.lost for seen in all_seen), sum(seen.torn for seen in all_seen)
    records = before * (SHARED_KEYS + OWN_KEYS)
    say(f"{kind}: {kills} kills, {records} records acknowledged, {lost} lost, {torn} torn")
    return not lost and not torn


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--store", choices=["lmdb", "redis"], required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(not main(given.workdir, given.store, given.kills, given.seed))
