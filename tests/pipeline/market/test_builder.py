"""The market as a TFDS data set, and from there through `star import`."""

import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from star_jax.jobs.import_tables import ImportConfig, run
from star_jax.pipeline.market import builder
from star_jax.pipeline.market.generate import generate
from star_jax.pipeline.market.prepare import prepare_market
from star_jax.pipeline.market.size import MarketConfig
from star_jax.pipeline.tables.read import read_meta, read_nodes, read_pairs

ROOT = Path(__file__).parents[3]
TINY = MarketConfig(size="tiny")

_WITHOUT_TENSORFLOW = """
import json, sys
from pathlib import Path
import tensorflow_datasets as tfds
from star_jax.pipeline.market import builder
from star_jax.pipeline.market.size import MarketConfig
folder = builder.prepare(MarketConfig(size="tiny"), Path(sys.argv[1]))
data = tfds.builder_from_directory(str(folder))
assert data.info.file_format.value == "array_record", data.info.file_format
rows = {
    split: sum(int(record["num_rows"]) for record in data.as_data_source(split=split))
    for split in data.info.splits
}
assert "tensorflow" not in sys.modules
print(json.dumps([str(folder), rows]))
"""


@pytest.fixture(scope="module")
def tiny():
    return generate(TINY)


def test_rows_written_are_rows_read_without_tensorflow(tmp_path, tiny):
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TENSORFLOW, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = {name.replace("/", "-"): table.num_rows for name, table in tiny.tables.items()}
    folder, rows = json.loads(done.stdout.splitlines()[-1])
    assert rows == expected
    read = builder.read(Path(folder))
    assert read.facts == tiny.facts
    assert list(read.tables) == list(tiny.tables)
    for name, table in tiny.tables.items():
        assert read.tables[name].equals(table.combine_chunks()), name


def test_array_record_files_are_the_same_bytes_again(tmp_path):
    digests = []
    for name in ("a", "b"):
        folder = builder.prepare(MarketConfig(size=150, seed=4), tmp_path / name)
        files = sorted(folder.glob("*.array_record*"))
        assert files
        digests.append([(f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files])
    assert digests[0] == digests[1]


def test_long_tables_are_cut_into_records_and_joined_again(tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(builder, "_BATCH_ROWS", 7)
    read = builder.read(builder.prepare(TINY, tmp_path))
    for name, table in tiny.tables.items():  # 64 positions are nine batches and one row.
        assert read.tables[name].equals(table.combine_chunks()), name


def test_configs_have_names_of_their_own():
    assert [c.name for c in builder.StarMarket.BUILDER_CONFIGS] == ["tiny", "small", "medium"]
    assert builder.builder_config(TINY).name == "tiny"
    names = {builder.builder_config(MarketConfig(size="tiny", seed=s)).name for s in range(4)}
    assert len(names) == 4


def test_the_data_folder_offers_the_builder_to_tfds_tools(monkeypatch):
    folder = ROOT / "data" / "star_market"
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("star_market_dataset_builder")
    assert module.Builder is builder.StarMarket
    assert module.Builder.name == folder.name


def test_star_import_takes_the_market_without_a_problem(tmp_path, tiny):
    prepare_market(TINY, tmp_path / "market")
    for name, table in tiny.tables.items():
        assert pq.read_table(tmp_path / "market" / f"{name}.parquet").equals(table), name
    run(ImportConfig(source=tmp_path / "market"), tmp_path / "work")
    meta = read_meta(tmp_path / "work" / "tables")
    assert len(meta.node_types) == 8
    assert len(meta.edge_types) == 14
    assert list(meta.tasks) == ["apply", "reply", "contact"]
    assert meta.node_types["member"].count == 194  # 6 of 200 opted out.
    pairs = read_pairs(tmp_path / "work" / "tables", "apply", "test")
    assert len(pairs.sender) == tiny.tables["pairs/apply_test"].num_rows
    expected = tiny.tables["pairs/apply_test"]["true_logit"].combine_chunks()
    assert pa.array(pairs.true_logit).equals(expected)
    assert (pairs.sender_text >= 0).all()
    assert (pairs.receiver_text >= 0).all()
    assert (pairs.sender_resume >= 0).any()
    assert not (pairs.sender_resume >= 0).all()
    ids = read_nodes(tmp_path / "work" / "tables", "member")["id"].to_pylist()
    sender = tiny.tables["pairs/apply_test"]["sender"].to_pylist()
    assert [ids[i] for i in pairs.sender] == sender
