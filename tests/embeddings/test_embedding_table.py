import numpy as np
import pyarrow.parquet as pq
import pytest

from star_jax.config import InputError
from star_jax.embeddings.table import EmbeddingTable, read_ids, read_table, write_shard
from star_jax.shapes import NO_TIME


def table(start, stop):
    ids = np.arange(start, stop, dtype=np.int32)
    return EmbeddingTable(
        entity=ids // 2,
        text_id=ids,
        t=np.where(ids % 3 == 0, NO_TIME, ids.astype(np.int64) * 10**10),
        vectors=np.random.default_rng(start).normal(size=(stop - start, 4)).astype(np.float32),
    )


def test_shards_come_back_in_order(tmp_path):
    parts = [table(0, 5), table(5, 7)]
    for shard, part in enumerate(parts):
        write_shard(tmp_path / "job", shard, [f"id{i}" for i in part.entity], part)
    got = read_table(tmp_path, "job")
    for name in EmbeddingTable._fields:
        np.testing.assert_array_equal(
            getattr(got, name), np.concatenate([getattr(part, name) for part in parts])
        )
    assert read_ids(tmp_path, "job") == [f"id{i // 2}" for i in range(7)]


def test_no_time_is_null_on_disk_and_one_shard_stays_there(tmp_path):
    write_shard(tmp_path / "job", 0, list("abcde"), table(0, 5))
    assert pq.read_table(tmp_path / "job" / "rows-00000.parquet")["t"].null_count == 2
    assert isinstance(read_table(tmp_path, "job").vectors, np.memmap)


def test_columns_of_one_length(tmp_path):
    with pytest.raises(ValueError, match=r"differ in length: \{'ids': 2"):
        write_shard(tmp_path / "job", 0, ["a", "b"], table(0, 5))


def test_missing_tables_and_vectors_are_named(tmp_path):
    with pytest.raises(InputError, match="has no table of node type 'job'"):
        read_table(tmp_path, "job")
    write_shard(tmp_path / "job", 0, list("abcde"), table(0, 5))
    np.save(tmp_path / "job" / "vectors-00000.npy", np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match=r"vectors-00000.npy has shape \(4, 4\), needed 5 rows"):
        read_table(tmp_path, "job")
    (tmp_path / "job" / "vectors-00000.npy").unlink()
    with pytest.raises(InputError, match=r"vectors-00000\.npy is missing"):
        read_table(tmp_path, "job")
