"""The tables of an export, from random vectors: no model has to be compiled."""

import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.embeddings.quantise import PRECISIONS, quantise
from star_jax.embeddings.reuse import VectorFiles
from star_jax.embeddings.table import RANGES, keys_path, read_table
from star_jax.pipeline import text_tables
from star_jax.pipeline.tables.read import read_texts
from star_jax.pipeline.text_records import text_records
from star_jax.pipeline.text_tables import TextVectors, choose_ranges, write_text_tables
from star_jax.text.families import TokenLimits
from star_jax.text.tower import TowerConfig, build_tokenizer
from tests.pipeline.text_market import write_tables

SIZE = 12


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """A folder, its records, and their vectors: every other one in a second file."""
    workdir = tmp_path_factory.mktemp("market")
    write_tables(workdir / "tables")
    limits = TokenLimits(job=64, profile=64, resume=64, other=64)
    records = text_records(
        workdir, build_tokenizer(TowerConfig(base="random", prompts="none", limits=limits))
    )
    wide = np.random.default_rng(0).normal(size=(len(records), SIZE)).astype(np.float32)
    paths, halves = [workdir / "a.npy", workdir / "b.npy"], [wide[::2], wide[1::2]]
    for path, half in zip(paths, halves, strict=True):
        np.save(path, half)
    files = VectorFiles(paths, [len(half) for half in halves], SIZE)
    number = np.arange(len(records))
    place = number // 2 + number % 2 * len(halves[0])
    return workdir, records, wide, TextVectors(files, place)


def test_every_precision_row_by_row_in_shards(market, tmp_path, monkeypatch):
    workdir, records, wide, vectors = market
    monkeypatch.setattr(text_tables, "_BLOCK_ROWS", 7)
    ranges = choose_ranges(tmp_path, vectors, None, 10**6)
    write_text_tables(
        workdir, tmp_path, records, vectors, precisions=PRECISIONS, ranges=ranges, shard_rows=20
    )
    expected = np.stack([wide.min(axis=0), wide.max(axis=0)])
    np.testing.assert_array_equal(np.load(tmp_path / RANGES), expected)
    for name in ("member", "job"):
        texts, rows = read_texts(workdir / "tables", name), records.records[name]
        for precision in PRECISIONS:
            table = read_table(tmp_path, name, precision=precision)
            np.testing.assert_array_equal(table.text_id, np.arange(len(texts.text)))
            np.testing.assert_array_equal(table.entity, texts.entity)
            codes = quantise(wide[rows], precision, expected)
            np.testing.assert_array_equal(table.vectors, codes)
            assert table.vectors.dtype == codes.dtype
        near = read_table(tmp_path, name, precision="int8", dequantised=True).vectors
        assert (np.abs(near - wide[rows]) <= (expected[1] - expected[0]) / 255 + 1e-6).all()
        num_shards = -(-len(rows) // 20)
        keys = [np.load(keys_path(tmp_path / name, shard)) for shard in range(num_shards)]
        np.testing.assert_array_equal(np.concatenate(keys), records.keys[rows])


def test_what_was_not_written_is_named(market, tmp_path):
    workdir, records, _, vectors = market
    precisions = ("ubinary",)
    write_text_tables(
        workdir, tmp_path, records, vectors, precisions=precisions, ranges=None, shard_rows=100
    )
    with pytest.raises(InputError, match=r"vectors-00000.npy is missing.*ubinary-00000.npy"):
        read_table(tmp_path, "job")


def test_ranges_of_a_sample_or_those_given(market, tmp_path):
    _, _, wide, vectors = market
    sample = choose_ranges(tmp_path, vectors, None, 5)
    chosen = [(wide >= low).all(axis=1) & (wide <= high).all(axis=1) for low, high in [sample]]
    assert 5 <= chosen[0].sum() < len(wide)
    given = np.stack([np.full(SIZE, -9, np.float32), np.full(SIZE, 9, np.float32)])
    np.save(tmp_path / "mine.npy", given)
    np.testing.assert_array_equal(choose_ranges(tmp_path, vectors, tmp_path / "mine.npy", 5), given)
    np.save(tmp_path / "mine.npy", given[:, 1:])
    with pytest.raises(InputError, match=r"mine.npy has shape \(2, 11\) .* needed \(2, 12\)"):
        choose_ranges(tmp_path, vectors, tmp_path / "mine.npy", 5)
