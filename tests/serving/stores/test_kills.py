import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.stores import kills, servers

pytestmark = pytest.mark.extra("stores")


@pytest.mark.parametrize("store", ["lmdb", "redis"])
def test_no_kill_loses_what_was_acknowledged_or_leaves_half(tmp_path, store):
    """In processes of their own: a fork of this one would inherit its devices."""
    if store == "redis" and servers.PROGRAM is None:
        pytest.skip("neither redis-server nor valkey-server is on the PATH")
    command = [sys.executable, kills.__file__, tmp_path, "--store", store, "--kills", "3"]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(Path(kills.__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header, *lines, last = done.stdout.splitlines()
    assert header.split() == ["kill", "acknowledged", "under", "way", "lost", "torn"]
    assert len(lines) == 3
    found = re.fullmatch(rf"{store}: 3 kills, (\d+) records acknowledged, 0 lost, 0 torn", last)
    assert found
    assert int(found[1]) > 0


def test_what_is_lost_or_torn_is_seen(tmp_path):
    """The check itself, on a store from which a record is missing and one is another's."""
    store = kills.writer(f"lmdb:{tmp_path}")
    for batch in (1, 2):
        store.put_many(kills.batch_of(batch))
    assert kills.look(store, 2, whole=True)[2:] == (0, 0)
    store = kills.writer(f"lmdb:{tmp_path}")
    store.delete_many([kills.own_key(1, 3)], 5, 2**50)
    store.put_many([(kills.shared_key(0), kills.record(3, 1))])
    lost_and_torn = kills.look(store, 2, whole=True)[2:]
    assert lost_and_torn == (1, 1)
    store = kills.writer(f"lmdb:{tmp_path}")
    store.put_many([(b"stray", kills.record(3, 1)), (kills.own_key(3, 0), kills.record(3, 0))])
    assert kills.look(store, 2, whole=True)[2:] == (1, 3)  # Half a batch is there, too.
