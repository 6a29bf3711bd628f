from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings import id_index
from star_jax.embeddings.id_index import MISSING, IdIndex, as_ids, hashes_of
from star_jax.embeddings.quantise import measure_ranges, quantise
from star_jax.embeddings.reader import EmbeddingReader, open_reader
from star_jax.embeddings.registry.registry import Registry
from star_jax.embeddings.table import RANGES, array_path
from star_jax.embeddings.transforms.files import write_transform
from star_jax.embeddings.transforms.maps import linear
from star_jax.embeddings.transforms.transform import Step, Transform
from star_jax.shapes import NO_TIME
from tests.embeddings import tables

ROWS = tables.make_rows(300)
NAMES = sorted({row.id for row in ROWS})
TIMES = [None, NO_TIME, -6, -5, 0, 3, 5, 2**63 - 1]


@pytest.fixture
def folder(tmp_path):
    return tables.write(tmp_path / "w" / "embeddings", {"job": ROWS, "member": ROWS[:50]})


def check(reader, time):
    asked = [*NAMES, "nobody", "", NAMES[3], NAMES[0] + "\0"]
    found = reader.get(asked, time)
    assert found.ids.to_pylist() == asked
    for i, name in enumerate(asked):
        expected = tables.last(ROWS, name, time)
        assert found.found[i] == (expected is not None), name
        if expected is None:
            assert found.event_time[i] == NO_TIME
            assert np.isnan(found.vectors[i]).all()
        else:
            assert found.event_time[i] == expected.t
            np.testing.assert_array_equal(found.vectors[i], expected.vector)


@pytest.mark.parametrize("time", TIMES)
def test_the_last_row_that_is_not_younger(folder, time):
    reader = EmbeddingReader(folder, "job")
    assert (reader.num_rows, reader.size) == (300, 4)
    check(reader, time)


@pytest.mark.parametrize("hashes", [1, 2, 7])
def test_ids_of_one_hash_are_told_apart(folder, monkeypatch, hashes):
    monkeypatch.setattr(id_index, "hashes_of", lambda ids: hashes_of(ids) % np.uint64(hashes))
    reader = EmbeddingReader(folder, "job")
    for time in TIMES:
        check(reader, time)


@pytest.mark.parametrize("time", TIMES)
def test_last_names_a_row_per_id(folder, time):
    reader = EmbeddingReader(folder, "job")
    rows = reader.last(time)
    assert rows.tolist() == sorted(rows.tolist())
    expected = [tables.last(ROWS, name, time) for name in NAMES]
    assert sorted(reader.ids(rows).to_pylist()) == [row.id for row in expected if row]
    for block in reader.blocks(rows, 7):
        assert len(block.ids) <= 7
        assert block.found.all()
        for name, t, vector in zip(
            block.ids.to_pylist(), block.event_time, block.vectors, strict=True
        ):
            row = tables.found(ROWS, name, time)
            assert row.t == t
            np.testing.assert_array_equal(vector, row.vector)


def test_a_table_may_be_empty(tmp_path):
    reader = EmbeddingReader(tables.write(tmp_path / "e", {"job": []}, num_shards=1), "job")
    assert (reader.num_rows, reader.size, len(reader.last())) == (0, 4, 0)
    assert not reader.get(["a", "b"], 5).found.any()
    assert reader.get([]).vectors.shape == (0, 4)
    assert list(reader.blocks(reader.last(), 5)) == []


def test_hashes_go_by_all_bytes_of_an_id():
    """Of any length, and wherever the array begins."""
    names = ["", "\0", "a", "a\0", "12345678", "12345678\0", "123456789", "x" * 100, "x" * 99 + "y"]
    hashes = hashes_of(as_ids(names))
    assert len(set(hashes.tolist())) == len(names)
    assert hashes_of(as_ids(names).slice(3, 4)).tolist() == hashes[3:7].tolist()
    assert hashes_of(as_ids(names[::-1])).tolist() == hashes[::-1].tolist()
    assert hashes_of(as_ids([])).tolist() == []
    many = hashes_of(as_ids([f"id{i}" for i in range(100_000)]))
    assert len(np.unique(many)) == len(many)


def test_chunks_change_no_hash(monkeypatch):
    names = as_ids([f"{i}" * (i % 5) for i in range(50)])
    whole = hashes_of(names)
    monkeypatch.setattr(id_index, "_CHUNK_ROWS", 7)
    assert hashes_of(names).tolist() == whole.tolist()


def test_an_index_of_nothing():
    index = IdIndex(as_ids([]), np.zeros(0, np.int64))
    assert index.find(as_ids(["a"]), None).tolist() == [MISSING]


def test_vectors_stay_on_disk(folder, monkeypatch):
    """Only what is asked for is read: one of three files is never opened."""
    (folder / "job" / "vectors-00002.npy").write_bytes(
        bytes((folder / "job" / "vectors-00002.npy").stat().st_size)
    )
    reader = EmbeddingReader(folder, "job")
    first = ROWS[0]
    early = reader.blocks(np.arange(100), 100)
    np.testing.assert_array_equal(next(early).vectors[0], first.vector)


def test_int8_is_read_as_floats(tmp_path):
    folder = tmp_path / "e"
    tables.write(folder, {"job": ROWS}, num_shards=1)
    vectors = np.stack([row.vector for row in ROWS])
    ranges = measure_ranges(vectors)
    np.save(folder / RANGES, ranges)
    np.save(array_path(folder / "job", 0, "int8"), quantise(vectors, "int8", ranges))
    (folder / "job" / "vectors-00000.npy").unlink()
    artefacts.seal(folder, "text_embeddings", {})
    found = EmbeddingReader(folder, "job", precision="int8").get(NAMES)
    expected = np.stack([tables.found(ROWS, name).vector for name in NAMES])
    np.testing.assert_allclose(found.vectors, expected, atol=float(np.ptp(vectors)) / 255)
    assert found.vectors.dtype == np.float32
    best = EmbeddingReader(folder, "job").get(NAMES)
    np.testing.assert_array_equal(best.vectors, found.vectors)
    with pytest.raises(InputError, match=r"vectors-00000.npy is missing"):
        EmbeddingReader(folder, "job", precision="float32")
    with pytest.raises(InputError, match="precision binary keeps no sizes"):
        EmbeddingReader(folder, "job", precision="binary")


def transform(new, old="0" * 64, size=2):
    matrix = np.random.default_rng(1).normal(size=(4, size))
    return Transform("ridge", new, old, {"job": (Step(linear(matrix), False),)}), matrix


def test_a_map_is_applied_on_read(folder, tmp_path):
    plain = EmbeddingReader(folder, "job")
    own, matrix = transform(plain.digest)
    write_transform(tmp_path / "map", own, {})
    reader = open_reader(str(folder), "job", as_version=str(tmp_path / "map"))
    assert reader.size == 2
    assert reader.version.startswith(f"{plain.version}>{'0' * 16}/")
    found, raw = reader.get([*NAMES, "nobody"]), plain.get([*NAMES, "nobody"])
    expected = raw.vectors[raw.found] @ matrix.astype(np.float32)
    np.testing.assert_allclose(found.vectors[found.found], expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(found.vectors[-1]).all()


def test_another_map_is_another_version(folder):
    plain = EmbeddingReader(folder, "job")
    first, matrix = transform(plain.digest)
    second = first._replace(steps={"job": (Step(linear(matrix + 1e-6), False),)})
    third = first._replace(steps={"job": (Step(linear(matrix), True),)})
    versions = [EmbeddingReader(folder, "job", transform=t).version for t in (first, second, third)]
    assert len({plain.version, *versions}) == 4
    assert EmbeddingReader(folder, "job", transform=first).version == versions[0]


def test_a_map_of_other_vectors_is_refused(folder):
    own, _ = transform("1" * 64)
    with pytest.raises(InputError, match=r"reads vectors of 1{12}, .* holds those of"):
        EmbeddingReader(folder, "job", transform=own)
    own = own._replace(new=artefacts.digest(folder))
    with pytest.raises(InputError, match="maps job, not node type 'member'"):
        EmbeddingReader(folder, "member", transform=own)


def test_by_version_and_alias_and_as_an_older_one(tmp_path):
    lineage: dict[str, Any] = {"model": "0" * 64, "graph": "0" * 64}
    old = tables.write(tmp_path / "old", {"job": ROWS[:40]}, **lineage)
    folder = tables.write(tmp_path / "new", {"job": ROWS}, **lineage)
    url = str(tmp_path / "registry")
    registry = Registry(url)
    first, second = registry.add(old, "jobs"), registry.add(folder, "jobs")
    own, matrix = transform(second.digest, first.digest)
    write_transform(tmp_path / "map", own, {})
    registry.add(tmp_path / "map", "maps")
    registry.alias(second.ref, "canary")
    reader = open_reader("jobs@canary", "job", registry=url, as_version=first.ref)
    expected = EmbeddingReader(folder, "job").get(NAMES).vectors @ matrix.astype(np.float32)
    np.testing.assert_allclose(reader.get(NAMES).vectors, expected, rtol=1e-5, atol=1e-6)
    same = open_reader(first.ref, "job", registry=url, as_version=first.ref)
    assert same.version == open_reader(str(old), "job").version


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(InputError, match="is no folder of an artefact; as a version"):
        open_reader("jobs@3", "job")
    with pytest.raises(InputError, match="jobs@2 is no folder of a transform; as an older version"):
        open_reader(str(folder), "job", as_version="jobs@2")
    with pytest.raises(InputError, match="has no table of node type 'skill'"):
        open_reader(str(folder), "skill")
    (folder / "job" / "vectors-00001.npy").unlink()
    with pytest.raises(InputError, match=r"vectors-00001\.npy is missing"):
        EmbeddingReader(folder, "job")


def test_ids_longer_than_two_gigabytes_in_all_are_no_matter():
    """Offsets are of 64 bits."""
    assert as_ids(["a"]).type == pa.large_string()
