import numpy as np
import pyarrow.parquet as pq
import pytest

from star_jax.config import InputError
from star_jax.embeddings.quantise import dequantise, measure_ranges, quantise
from star_jax.embeddings.reuse import VectorFiles, write_vectors
from star_jax.embeddings.table import (
    RANGES,
    EmbeddingTable,
    array_path,
    open_vectors,
    read_ids,
    read_rows,
    read_table,
    write_shard,
)
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


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16", "int8", "uint8"])
def test_stored_vectors_read_as_all_of_them_would(tmp_path, precision):
    parts = [table(0, 5), table(5, 7)]
    whole = np.concatenate([part.vectors for part in parts])
    np.save(tmp_path / RANGES, measure_ranges(whole))
    for shard, part in enumerate(parts):
        write_shard(tmp_path / "job", shard, [f"id{i}" for i in part.entity], part, "float16")
        codes = quantise(part.vectors, precision, measure_ranges(whole))
        array_path(tmp_path / "job", shard, "float16").unlink()
        np.save(array_path(tmp_path / "job", shard, precision), codes)
        np.save(array_path(tmp_path / "job", shard, "binary"), np.zeros((5, 1), np.int8))
    rows, vectors = read_rows(tmp_path, "job"), open_vectors(tmp_path, "job")
    np.testing.assert_array_equal(rows.text_id, np.arange(7))
    assert (vectors.shape, vectors.dtype) == ((7, 4), np.float32)
    codes = quantise(whole, precision, measure_ranges(whole))
    expected = dequantise(codes, precision, measure_ranges(whole))
    asked = np.array([6, 0, 4, 5, 0])
    for _ in range(2):
        np.testing.assert_array_equal(vectors[asked], expected[asked])
        vectors.release()
    np.testing.assert_array_equal(vectors.take(asked), expected[asked])
    again = read_table(tmp_path, "job", precision=precision, dequantised=True)
    np.testing.assert_array_equal(again.vectors, expected)


def test_what_cannot_be_had_back_is_refused(tmp_path):
    write_shard(tmp_path / "job", 0, list("abcde"), table(0, 5))
    array_path(tmp_path / "job", 0, "float32").unlink()
    np.save(array_path(tmp_path / "job", 0, "binary"), np.zeros((5, 1), np.int8))
    with pytest.raises(InputError, match=r"vectors-00000.npy is missing.*binary-00000.npy"):
        open_vectors(tmp_path, "job")
    with pytest.raises(InputError, match="precision binary keeps no sizes, needed one of float32"):
        open_vectors(tmp_path, "job", "binary")


def test_rows_of_bfloat16_are_rounded_to_its_eight_bits(tmp_path):
    vectors = np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32)
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for path, part in zip(paths, (vectors[:4], vectors[4:]), strict=True):
        write_vectors(path, part, "bfloat16")
    assert paths[0].stat().st_size < 4 * 3 * 4 + 128
    files = VectorFiles(paths, [4, 2], 3, "bfloat16")
    asked = np.array([5, 1, 1, 3])
    scale = 2.0 ** (np.floor(np.log2(np.abs(vectors))) - 7)  # Of the last of eight digits.
    rounded = (np.round(vectors.astype(np.float64) / scale) * scale).astype(np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(files.take(asked), rounded[asked])
        files.release()
    with pytest.raises(InputError, match=r"of uint16, needed \(4, 3\) of float32"):
        VectorFiles(paths, [4, 2], 3).take(asked)
