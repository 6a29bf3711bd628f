import json
import struct

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from star_jax.config import InputError
from star_jax.embeddings.columns import Rows, decode_vectors, read_meta, write_parquet
from star_jax.shapes import NO_TIME

VECTORS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
NAMES = [f"n{i}" for i in range(50)]
TIMES = np.where(np.arange(50) % 7 == 0, NO_TIME, np.arange(50))


def blocks(found=True):
    for part in np.array_split(np.arange(50), 3):
        names = pa.array([NAMES[i] for i in part])
        here = np.full(len(part), True)
        here[0] = found
        yield Rows(names, TIMES[part], VECTORS[part], here)


@pytest.fixture(params=["<f4", "<f2"])
def file(request, tmp_path):
    assert write_parquet(tmp_path / "x.parquet", "v>w", 3, request.param, blocks()) == 50
    return tmp_path / "x.parquet", request.param


def test_the_bytes_are_the_numbers(file):
    """One by one, by the definition."""
    path, dtype = file
    table = pq.read_table(path)
    letter = {"<f4": "f", "<f2": "e"}[dtype]
    for vector, content in zip(VECTORS.astype(dtype), table["vector"].to_pylist(), strict=True):
        assert struct.unpack(f"<3{letter}", content) == tuple(vector.tolist())
    assert table["id"].to_pylist() == NAMES
    assert table["version"].to_pylist() == ["v>w"] * 50
    assert table["event_time"].to_pylist() == [t if t != NO_TIME else None for t in TIMES.tolist()]
    assert read_meta(path) == {"dtype": dtype, "size": 3, "version": "v>w"}
    assert json.loads(pq.read_schema(path).metadata[b"star_jax"])["size"] == 3


def test_pyarrow_reads_without_a_copy(file):
    path, dtype = file
    column = pq.read_table(path)["vector"]
    np.testing.assert_array_equal(decode_vectors(column, 3, dtype), VECTORS.astype(dtype))
    one = column.combine_chunks()
    found = decode_vectors(one.slice(5, 7), 3, dtype)
    np.testing.assert_array_equal(found, VECTORS[5:12].astype(dtype))
    assert np.shares_memory(found, np.frombuffer(one.buffers()[1], np.uint8))


def test_duckdb_reads_it(file):
    path, dtype = file
    query = f"from '{path}' where event_time > 30 or event_time is null order by id"
    expected = sorted(
        (name, vector)
        for name, vector, t in zip(NAMES, VECTORS.astype(dtype).tolist(), TIMES, strict=True)
        if t > 30 or t == NO_TIME
    )
    with duckdb.connect() as db:
        names, vectors = zip(*db.sql(f"select id, vector {query}").fetchall(), strict=True)
        arrow = db.sql(f"select vector {query}").to_arrow_table()
        numpy = db.sql(f"select vector {query}").fetchnumpy()
    assert list(names) == [name for name, _ in expected]
    for found in (list(vectors), arrow["vector"], numpy["vector"]):
        decoded = decode_vectors(found, 3, dtype)
        np.testing.assert_array_equal(decoded, [vector for _, vector in expected])


def test_polars_reads_it(file):
    polars = pytest.importorskip("polars")
    path, dtype = file
    frame = polars.read_parquet(path).filter(polars.col("event_time") > 30)
    found = decode_vectors(frame["vector"], 3, dtype)
    np.testing.assert_array_equal(found, VECTORS[TIMES > 30].astype(dtype))
    lazy = polars.scan_parquet(path).select("vector").slice(2, 3).collect()
    found = decode_vectors(lazy["vector"], 3, dtype)
    np.testing.assert_array_equal(found, VECTORS[2:5].astype(dtype))


def test_pandas_reads_it(file):
    pandas = pytest.importorskip("pandas")
    path, dtype = file
    frame = pandas.read_parquet(path)
    chosen = frame[frame["event_time"] > 30]
    found = decode_vectors(chosen["vector"], 3, dtype)
    np.testing.assert_array_equal(found, VECTORS[TIMES > 30].astype(dtype))
    assert frame["id"].tolist() == NAMES


def test_the_documented_decoder_needs_nothing_of_ours(file):
    path, dtype = file
    column = pq.read_table(path)["vector"].to_pylist()
    found = np.frombuffer(b"".join(column), dtype).reshape(-1, 3)
    np.testing.assert_array_equal(found, VECTORS.astype(dtype))


def test_what_was_not_found_is_null(tmp_path):
    write_parquet(tmp_path / "x", "v", 3, "<f4", blocks(found=False))
    column = pq.read_table(tmp_path / "x")["vector"]
    assert column.null_count == 3
    with pytest.raises(ValueError, match="1 of 17 vectors are null"):
        decode_vectors(column, 3, "<f4")
    with pytest.raises(ValueError, match="a vector is None, needed 12 bytes"):
        decode_vectors(column.to_pylist(), 3, "<f4")
    full = decode_vectors(column.drop_null(), 3, "<f4")
    np.testing.assert_array_equal(full, np.delete(VECTORS, [0, 17, 34], axis=0))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(12)])
def test_a_part_of_a_column_begins_where_it_should(kind):
    """Of any type of bytes, in one piece or several."""
    column = pa.array([vector.tobytes() for vector in VECTORS], kind)
    np.testing.assert_array_equal(decode_vectors(column.slice(5, 3), 3, "<f4"), VECTORS[5:8])
    pieces = pa.chunked_array([column.slice(40, 3), column.slice(1, 2)])
    expected = np.concatenate([VECTORS[40:43], VECTORS[1:3]])
    np.testing.assert_array_equal(decode_vectors(pieces, 3, "<f4"), expected)


def test_other_widths_are_refused():
    values = [bytes(12), bytes(8)]
    for column in (values, pa.array(values), pa.array(values, pa.large_binary())):
        with pytest.raises(ValueError, match="8 bytes, needed 12"):
            decode_vectors(column, 3, "<f4")
    with pytest.raises(ValueError, match="vectors of 12 bytes, needed 6"):
        decode_vectors(pa.array(values[:1], pa.binary(12)), 3, "<f2")
    assert decode_vectors([], 3, "<f4").shape == (0, 3)
    assert decode_vectors(pa.chunked_array([], pa.binary(12)), 3, "<f4").shape == (0, 3)


def test_a_file_of_something_else_is_refused(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x.parquet has no star_jax in its metadata"):
        read_meta(tmp_path / "x.parquet")


def test_no_rows_are_a_file_too(tmp_path):
    assert write_parquet(tmp_path / "x", "v", 3, "<f4", iter(())) == 0
    assert pq.read_table(tmp_path / "x").num_rows == 0
