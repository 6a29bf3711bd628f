import numpy as np
import pyarrow.parquet as pq
import pytest

from star_jax import artefacts
from star_jax.pipeline import text_records as module
from star_jax.pipeline.tables.read import read_texts
from star_jax.pipeline.text_records import text_records
from star_jax.text.families import TokenLimits
from star_jax.text.tower import TowerConfig, build_tokenizer
from tests.pipeline.text_market import NUM_JOBS, NUM_MEMBERS, write_tables


def tokenizer(limit=64):
    limits = TokenLimits(job=limit, profile=limit, resume=limit, other=limit)
    return build_tokenizer(TowerConfig(base="random", prompts="none", limits=limits))


@pytest.fixture
def workdir(tmp_path):
    write_tables(tmp_path / "tables")
    return tmp_path


def test_every_text_points_at_its_own_tokens(workdir):
    records = text_records(workdir, tokenizer())
    assert set(records.records) == {"member", "job"}
    for node_type in ("member", "job"):
        texts = read_texts(workdir / "tables", node_type)
        rows = records.read(records.of(node_type, texts.text_id).tolist())
        for row, kind, text in zip(rows, texts.kind, texts.text, strict=True):
            (expected,) = tokenizer().encode([text], kind)
            np.testing.assert_array_equal(row, expected)
            assert row.dtype == np.int32
    assert [len(row) for row in records.read(list(range(len(records))))] == records.lengths.tolist()


def test_identical_texts_are_one_record_tokenised_once(workdir, monkeypatch):
    seen = []
    reader = tokenizer()
    encode = reader.encode
    monkeypatch.setattr(
        reader, "encode", lambda texts, kind: [seen.extend(texts), encode(texts, kind)][1]
    )
    records = text_records(workdir, reader)
    texts = [t for n in ("member", "job") for t in read_texts(workdir / "tables", n).text]
    assert len(texts) == NUM_JOBS + 2 * NUM_MEMBERS
    assert sorted(seen) == sorted(set(texts))
    assert len(records) == len(set(texts))
    assert len({bytes(row) for row in records.read(list(range(len(records))))}) == len(records)
    jobs = records.of("job", np.array([3, 7, -1], np.int32))
    assert jobs[0] == jobs[1] != jobs[2] == -1


def test_made_once_and_again_for_another_tokenizer(workdir, monkeypatch):
    text_records(workdir, tokenizer())
    before = artefacts.digest(workdir / "text_tokens")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", None)
        text_records(workdir, tokenizer())
    text_records(workdir, tokenizer(limit=8))
    assert artefacts.digest(workdir / "text_tokens") != before
    assert text_records(workdir, tokenizer(limit=8)).lengths.max() == 8


def test_node_types_without_texts_have_none(workdir):
    records = text_records(workdir, tokenizer())
    assert records.of("skill", np.array([-1, -1], np.int32)).tolist() == [-1, -1]


def test_tables_without_any_text(tmp_path):
    write_tables(tmp_path / "tables", with_texts=False)
    records = text_records(tmp_path, tokenizer())
    assert len(records) == 0
    assert records.read([]) == []


def test_several_files_read_as_one(workdir, monkeypatch):
    monkeypatch.setattr(module, "_SHARD_RECORDS", 7)
    records = text_records(workdir, tokenizer())
    assert len(list((workdir / "text_tokens").glob("tokens-*"))) == -(-len(records) // 7)
    assert [len(row) for row in records.read(list(range(len(records))))] == records.lengths.tolist()


def test_a_full_disk_is_an_os_error_and_leaves_nothing(workdir, monkeypatch):
    class Full(module.ArrayRecordWriter):
        def __init__(self, path, options):
            super().__init__("/dev/full", options)

    monkeypatch.setattr(module, "ArrayRecordWriter", Full)
    with pytest.raises(OSError, match=r"tokens-00000.array_record: .*No space left on device"):
        text_records(workdir, tokenizer())
    assert sorted(path.name for path in workdir.iterdir()) == ["tables"]


def test_truncation_is_counted(workdir):
    text_records(workdir, tokenizer(limit=8))
    meta = artefacts.read_manifest(workdir / "text_tokens", "text_tokens").meta
    table = pq.read_table(workdir / "tables" / "texts" / "job.parquet")
    unique = set(table["text"].to_pylist())
    assert meta["truncation"]["job"]["num_texts"] == len(unique)
    assert meta["truncation"]["job"]["num_truncated"] == sum(len(t) > 6 for t in unique)
