import hashlib
import weakref

import numpy as np
import pyarrow.parquet as pq
import pytest

from star_jax.config import InputError
from star_jax.embeddings.reuse import read_vectors
from star_jax.embeddings.transforms.pairs import PARTS, Pairs, PairsConfig, match
from star_jax.shapes import NO_TIME
from tests.embeddings.transforms.versions import Side, write_version

ALL = PairsConfig(timed=False, held_out=0.0, stopping=0.0, memory_limit_gib=0.5)


def numbered(rows):
    """Vectors that say which row they are."""
    return np.array([[float(row)] for row in rows], np.float32)


def found(pairs, part="fit"):
    """Rows of both sides, in the order given."""
    blocks = list(pairs.blocks(part, 3))
    assert all(len(x) <= 3 for x, _ in blocks)
    both = [np.concatenate(side)[:, 0].tolist() for side in zip(*blocks, strict=True)]
    return list(zip(*both, strict=True))


def matched(tmp_path, new, old, config=ALL, **written):
    """Writes two versions and pairs them."""
    sides = {"new": new, "old": old}
    folders = {
        name: write_version(tmp_path / name, {"job": side}, **written)
        for name, side in sides.items()
    }
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    counts = match(folders["old"], folders["new"], "job", scratch, config)
    return counts, Pairs(folders["old"], folders["new"], "job", scratch)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_rows_pair_by_the_entitys_own_id(tmp_path, num_shards):
    rng = np.random.default_rng(0)
    ids = [f"it's {i}" for i in range(40)]
    new, old = ([str(i) for i in rng.permutation(ids)[:25]] for _ in range(2))
    sides = Side(new, numbered(range(25))), Side(old, numbered(range(25)), t=[7] * 25)
    counts, pairs = matched(tmp_path, *sides, num_shards=num_shards)
    both = [(i, old.index(name)) for i, name in enumerate(new) if name in old]
    assert found(pairs) == both
    alone = 25 - len(both)
    assert counts == {
        "new_rows": 25,
        "old_rows": 25,
        "new_rows_alone": alone,
        "old_rows_alone": alone,
        "fit": len(both),
        "stopping": 0,
        "held_out": 0,
    }


def test_texts_of_one_entity_pair_by_their_time_and_order(tmp_path):
    """A profile and a resume of the same second, a text that one version has alone, no time."""
    new = Side(list("aaabbcd"), numbered(range(7)), t=[5, 5, 9, 1, 1, NO_TIME, 2])
    old = Side(list("caaabd"), numbered(range(6)), t=[NO_TIME, 5, 5, 8, 1, 2])
    counts, pairs = matched(tmp_path, new, old, ALL._replace(timed=True))
    assert found(pairs) == [(0, 1), (1, 2), (5, 0), (6, 5)]  # b has two rows there and one here.
    assert (counts["new_rows_alone"], counts["old_rows_alone"]) == (3, 2)


def test_parts_are_drawn_by_entity(tmp_path):
    ids = [f"id{i // 2}" for i in range(400)]
    side = Side(ids, numbered(range(400)), t=list(range(400)))
    config = PairsConfig(timed=True, held_out=0.25, stopping=0.125, memory_limit_gib=0.5)
    counts, pairs = matched(tmp_path, side, side, config)
    assert sum(counts[part] for part in PARTS) == 400
    for part, (least, most) in {"held_out": (0, 0.25), "stopping": (0.25, 0.375)}.items():
        draws = [
            int(hashlib.md5(name.encode()).hexdigest()[:8], 16) / 2**32  # As stored in artefacts.
            for name in ids
        ]
        own = [(row, row) for row, draw in enumerate(draws) if least <= draw < most]
        assert found(pairs, part) == own
        assert 0.7 * (most - least) < len(own) / 400 < 1.4 * (most - least)


def test_workers_share_the_pairs(tmp_path):
    side = Side([str(i) for i in range(11)], numbered(range(11)))
    _, pairs = matched(tmp_path, side, side)
    shares = [list(pairs.blocks("fit", 2, worker=i, workers=3)) for i in range(3)]
    assert all(shares)
    rows = [row for share in shares for x, _ in share for row in x[:, 0].tolist()]
    assert rows == list(range(11))


def test_files_are_let_go_of_block_by_block(tmp_path, monkeypatch):
    """Else a pass over all pairs has all vectors in its resident memory in the end."""
    maps = []

    def noted(*args):
        found = read_vectors(*args)
        maps.append(weakref.ref(found))
        return found

    monkeypatch.setattr("star_jax.embeddings.reuse.read_vectors", noted)
    side = Side([str(i) for i in range(12)], numbered(range(12)))
    _, pairs = matched(tmp_path, side, side)
    for number, _ in enumerate(pairs.blocks("fit", 3), 1):
        assert len(maps) >= 2 * number
        assert all(each() is None for each in maps[: 2 * (number - 1)])


def test_two_versions_with_nothing_in_common_are_refused(tmp_path):
    sides = Side(["a"], numbered([0]), t=[1]), Side(["b", "a"], numbered([0, 1]), t=[1, 2])
    with pytest.raises(
        InputError, match=r"new and .*old have 1 and 2 rows of job, none of the same entity and t"
    ):
        matched(tmp_path, *sides, ALL._replace(timed=True))


def test_rows_that_cannot_be_read_are_said(tmp_path):
    side = Side(["a"], numbered([0]))
    for name in ("v1", "v2"):
        write_version(tmp_path / name, {"job": side}, num_shards=1)
    path = tmp_path / "v1" / "job" / "rows-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["id"]), path)
    with pytest.raises(InputError, match=r"finding the pairs, reading the tables: .*id"):
        match(tmp_path / "v1", tmp_path / "v2", "job", tmp_path, ALL)
