"""`star import`: where the schema comes from, what is written, what is left when it fails."""

import dataclasses
import datetime

import numpy as np
import pytest

from star_jax import artefacts
from star_jax.config import InputError, from_json, to_json
from star_jax.jobs.import_tables import ImportConfig, run
from star_jax.pipeline.tables import read
from star_jax.pipeline.tables.build import build
from star_jax.pipeline.tables.database import Limits
from star_jax.pipeline.tables.schema import Deidentify
from star_jax.pipeline.tables.schema_file import schema_json
from star_jax.pipeline.tables.sources import PairSource
from tests.pipeline.tables import mini


def test_the_schema_is_named_or_lies_beside_the_tables(tmp_path):
    data = mini.write(tmp_path / "data", mini.tables())
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(schema_json(mini.schema()))
    run(ImportConfig(source=data, schema=elsewhere), tmp_path / "named")
    (data / "schema.py").write_text(
        "from tests.pipeline.tables import mini\nget_schema = mini.schema\n"
    )
    run(ImportConfig(source=data), tmp_path / "beside")
    digests = {artefacts.digest(tmp_path / name / "tables") for name in ("named", "beside")}
    assert len(digests) == 1
    artefacts.verify(tmp_path / "named/tables")
    assert read.read_meta(tmp_path / "named/tables").dataset == "mini"


def test_a_failed_import_leaves_the_old_tables_and_nothing_else(tmp_path):
    tables = mini.tables()
    data = mini.write(tmp_path / "data", tables)
    (data / "schema.json").write_text(schema_json(mini.schema()))
    run(ImportConfig(source=data), tmp_path / "run")
    before = artefacts.digest(tmp_path / "run/tables")
    tables["save.parquet"]["sender"][0] = "nobody"
    mini.write(data, tables)
    with pytest.raises(InputError, match="dangling id in save"):
        run(ImportConfig(source=data), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tables"]
    assert artefacts.digest(tmp_path / "run/tables") == before


def test_a_memory_limit_that_is_too_low_is_named_and_not_the_file(tmp_path):
    data = mini.write(tmp_path / "data", mini.tables())
    (tmp_path / "tables").mkdir()
    with pytest.raises(InputError, match=r"^bringing .* does not fit memory_limit_gib 0.001; give"):
        build(data, mini.schema(), tmp_path / "tables", Limits(0.001, 1), seed=0, fix=False)
    with pytest.raises(ValueError, match=r"memory_limit_gib is 0.01, needed at least 0.1"):
        ImportConfig(memory_limit_gib=0.01)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"source .*nowhere does not exist, needed a folder"):
        run(ImportConfig(source=tmp_path / "nowhere"), tmp_path / "run")


def test_the_config_survives_json(tmp_path):
    config = ImportConfig(source=tmp_path, personal_data=("a.csv:email",), fix=True)
    assert from_json(ImportConfig, to_json(config)) == config


def test_timestamps_are_unix_seconds(tmp_path):
    tables = mini.tables()
    expected, _ = mini.imported(tmp_path / "numbers", tables, mini.schema())
    for name in ("save.parquet", "texts_member.parquet"):
        tables[name]["t"] = [
            datetime.datetime.fromtimestamp(t, datetime.UTC) for t in tables[name]["t"]
        ]
    out, _ = mini.imported(tmp_path / "stamps", tables, mini.schema())
    for path in expected.rglob("*.parquet"):
        assert path.read_bytes() == (out / path.relative_to(expected)).read_bytes(), path


def test_the_secret_may_lie_in_a_file(tmp_path):
    data = mini.write(tmp_path / "data", mini.tables())
    schema = mini.schema(deidentify=Deidentify(key_file="secret"))
    member = dataclasses.replace(schema.nodes[0], deidentify=True)
    schema = dataclasses.replace(schema, nodes=(member, *schema.nodes[1:]))
    (data / "schema.json").write_text(schema_json(schema))
    with pytest.raises(InputError, match=r"key_file .*secret does not exist, needed a file with"):
        run(ImportConfig(source=data), tmp_path / "run")
    (data / "secret").write_text("0123456789abcdef\n")
    run(ImportConfig(source=data), tmp_path / "run")
    ids = read.read_nodes(tmp_path / "run/tables", "member")["id"].to_pylist()
    assert not {f"m{i}" for i in range(mini.NUM_MEMBERS)} & set(ids)


def test_generated_pairs_bring_their_planted_truth(tmp_path):
    """Fixed pairs without warm flags and pointers: both are worked out from events and texts."""
    tables = mini.tables()
    rng = np.random.default_rng(0)
    for n, split in enumerate(read.SPLITS):
        base = mini.START + (20, 70, 90)[n] * mini.DAY
        tables[f"pairs_{split}.csv"] = {
            "sender": [f"m{i // 2}" for i in range(20)],
            "receiver": [f"j{int(rng.integers(8))}" for _ in range(20)],
            "label": [1, 0] * 10,
            "kind": ["", "near"] * 10,
            "t": [base + i // 2 for i in range(20)],
            "logit": [float(i) for i in range(20)],
            "part": ["text", "text"] * 5 + ["structure", "structure"] * 5,
        }
    pairs = PairSource(
        file="pairs_{split}.csv", negative="kind", time="t", true_logit="logit", slice="part"
    )
    schema = mini.schema(tasks=(mini.apply_task(pairs=pairs),))
    out, meta = mini.imported(tmp_path, tables, schema)
    got = read.read_pairs(out, "apply", "val")
    assert got.true_logit.tolist() == [float(i) for i in range(20)]
    assert got.slice.tolist() == ["text"] * 10 + ["structure"] * 10
    assert got.negative.tolist() == ["", "near"] * 10
    assert meta.tasks["apply"].negatives == ["near"]
    events = tables["events.parquet"]
    rows = zip(events["sender"], events["time"], events["action"], strict=True)
    seen = {int(s[1:]) for s, t, a in rows if a == "APPLY" and t < mini.VAL_FROM}
    assert got.warm_sender.tolist() == [sender in seen for sender in got.sender.tolist()]
    texts = read.read_texts(out, "member")
    assert [texts.text[i] for i in got.sender_text] == [f"profile 1 of m{i}" for i in got.sender]
    assert read.read_ranking(out, "apply", "val") is not None  # Made from the events.
