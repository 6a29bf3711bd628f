"""Opted-out members reach no artefact; the same search finds a member who consents."""

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.jobs import import_tables
from star_jax.pipeline.tables import read
from star_jax.pipeline.tables.findings import InputProblemsError
from star_jax.pipeline.tables.schema import Deidentify
from star_jax.pipeline.tables.schema_file import schema_json
from star_jax.pipeline.tables.sources import PairSource, RankingSource
from tests.consent_search import search
from tests.pipeline.tables import mini


def _fixed(tables):
    """Fixed pairs and queries that name both members, as text pointers too."""
    jobs = [f"j{i}" for i in range(mini.NUM_JOBS)]
    members = [m for m in tables["member.parquet"]["id"] for _ in range(2)]
    for split in ("train", "val", "test"):
        tables[f"pairs_{split}.parquet"] = {
            "sender": members,
            "receiver": [jobs[i % mini.NUM_JOBS] for i in range(len(members))],
            "label": [1, 0] * mini.NUM_MEMBERS,
            "kind": ["", "uniform"] * mini.NUM_MEMBERS,
        }
        tables[f"rank_{split}.parquet"] = {"sender": members[::2], "receiver": ["j1"] * 30}
        tables[f"candidates_{split}.parquet"] = {"receiver": jobs}
    task = mini.apply_task(
        pairs=PairSource(file="pairs_{split}.parquet", negative="kind"),
        ranking=RankingSource(file="rank_{split}.parquet", candidates="candidates_{split}.parquet"),
    )
    return mini.schema(tasks=(task,))


@pytest.mark.parametrize("fixed", [False, True])
def test_opted_out_members_are_nowhere(fixed, tmp_path):
    tables = mini.tables()
    words = mini.mark(tables)
    schema = _fixed(tables) if fixed else mini.schema()
    data = mini.write(tmp_path / "raw", tables)
    (data / "schema.json").write_text(schema_json(schema))
    import_tables.run(import_tables.ImportConfig(source=data), tmp_path / "run")
    found = search(tmp_path / "run", [*words[mini.OUT_ID], *words[mini.IN_ID]])
    for needle in words[mini.OUT_ID]:
        assert not found[needle], needle
    for needle in words[mini.IN_ID]:
        assert found[needle], needle
    nodes = pq.read_table(tmp_path / "run/tables/nodes/member.parquet")
    assert nodes["idx"].to_pylist() == list(range(mini.NUM_MEMBERS - 1))
    report = artefacts.read_manifest(tmp_path / "run/tables", "tables").meta["import_report"]
    assert report["excluded"]["member nodes opted out"] == 1


def test_what_remains_is_what_there_is_without_the_member(tmp_path):
    """An import of the same data with the member's rows deleted by hand gives the same bytes."""
    tables = mini.tables()
    tables["member.parquet"]["consent"][mini.OUT] = False
    out, _ = mini.imported(tmp_path / "a", tables, mini.schema())
    for table in tables.values():
        gone = {
            row
            for column in ("id", "sender", "receiver", "entity")
            for row, value in enumerate(table.get(column, []))
            if value == f"m{mini.OUT}"
        }
        for column, values in table.items():
            table[column] = [v for row, v in enumerate(values) if row not in gone]
    expected, _ = mini.imported(tmp_path / "b", tables, mini.schema())
    for path in sorted(expected.rglob("*.parquet")):
        assert pq.read_table(out / path.relative_to(expected)).equals(pq.read_table(path)), path


def test_a_group_goes_with_its_positive_and_a_negative_alone(tmp_path):
    tables = mini.tables()
    schema = _fixed(tables)
    raw = tables["pairs_train.parquet"]
    tables["job.parquet"]["opted_out"] = [i in (2, 5) for i in range(mini.NUM_JOBS)]
    job = dataclasses.replace(schema.nodes[1], opt_out="opted_out")
    schema = dataclasses.replace(schema, nodes=(schema.nodes[0], job, schema.nodes[2]))
    out, _ = mini.imported(tmp_path, tables, schema)
    ids = pq.read_table(out / "nodes/job.parquet")["id"].to_pylist()
    pairs = read.read_pairs(out, "apply", "train")
    expected = []
    for row in range(0, len(raw["sender"]), 2):  # Even rows are positives, the next is theirs.
        kept = [row, row + 1] if raw["receiver"][row] not in ("j2", "j5") else []
        expected += [r for r in kept if raw["receiver"][r] not in ("j2", "j5")]
    assert [ids[r] for r in pairs.receiver] == [raw["receiver"][row] for row in expected]
    assert pairs.sender.tolist() == [int(raw["sender"][row][1:]) for row in expected]
    groups = np.cumsum(pairs.label) - 1
    assert pairs.group.tolist() == groups.tolist()
    ranking = read.read_ranking(out, "apply", "val")
    assert ranking is not None
    assert len(ranking.candidates) == mini.NUM_JOBS - 2


def test_opt_out_columns_count_as_well(tmp_path):
    tables = mini.tables()
    tables["job.parquet"]["opted_out"] = [i == 2 for i in range(mini.NUM_JOBS)]
    schema = mini.schema()
    job = dataclasses.replace(schema.nodes[1], opt_out="opted_out")
    schema = dataclasses.replace(schema, nodes=(schema.nodes[0], job, schema.nodes[2]))
    out, meta = mini.imported(tmp_path, tables, schema)
    assert meta.node_types["job"].count == mini.NUM_JOBS - 1
    assert "j2" not in pq.read_table(out / "nodes/job.parquet")["id"].to_pylist()


def test_deidentified_ids_are_keyed_hashes(tmp_path, monkeypatch):
    key = "a secret of 24 characters"
    monkeypatch.setenv("STAR_TEST_KEY", key)
    schema = mini.schema(deidentify=Deidentify(key_env="STAR_TEST_KEY"))
    member = dataclasses.replace(schema.nodes[0], deidentify=True)
    schema = dataclasses.replace(schema, nodes=(member, *schema.nodes[1:]))
    tables = mini.tables()
    mini.mark(tables)
    out, _ = mini.imported(tmp_path, tables, schema)
    ids = pq.read_table(out / "nodes/member.parquet")["id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert all(len(i) == 32 and int(i, 16) >= 0 for i in ids)
    found = search(out / "nodes", [key, mini.IN_ID, ids[0]])
    assert not found[key]
    assert "member.parquet" not in found[mini.IN_ID]  # Its made-up home town names it elsewhere.
    assert found[ids[0]]
    monkeypatch.setenv("STAR_TEST_KEY", key + "!")
    other, _ = mini.imported(tmp_path / "other", tables, schema)
    assert not set(ids) & set(pq.read_table(other / "nodes/member.parquet")["id"].to_pylist())
    monkeypatch.setenv("STAR_TEST_KEY", "short")
    with pytest.raises(InputError, match="STAR_TEST_KEY has 5 bytes, needed at least 16"):
        mini.imported(tmp_path / "short", tables, schema)


def test_declared_personal_data_is_let_in(tmp_path):
    tables = mini.tables()
    tables["member.parquet"]["birth_year"] = [1990] * mini.NUM_MEMBERS
    with pytest.raises(InputProblemsError, match=r"personal data in member.parquet:birth_year"):
        mini.imported(tmp_path / "a", tables, mini.schema())
    declared = mini.schema(personal_data=("member.parquet:birth_year",))
    out, _ = mini.imported(tmp_path / "b", tables, declared)
    # Declared, but no source reads it: it stays out all the same.
    assert "1990" not in str(pq.read_table(out / "nodes/member.parquet").column_names)


def test_the_search_decodes_what_it_is_meant_to(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    np.save(tmp_path / "tokens.npy", np.array([[1, 2, -1], [7, 8, -1]], np.int32))
    writer = ArrayRecordWriter(str(tmp_path / "t.array_record"), "group_size:1")
    writer.write(np.array([5, 6, 7], np.int32).tobytes())
    writer.close()
    lists = {
        "ids": pa.array([[1], None, [3, 4, -1]]),
        "words": pa.array([["in a list"], [], None]),
        "nested": pa.array([{"a": "in a struct"}, None, None]),
    }
    pq.write_table(pa.table(lists), tmp_path / "lists.parquet", compression="zstd")
    (tmp_path / "log.gz").write_bytes(gzip.compress(b"a zipped word"))
    state = {"layer": {"rows": np.array([[11, 12], [13, 14]], np.int32)}}
    ocp.save_checkpointables(str(tmp_path / "step_1"), {"state": state})
    expected = {
        "<7><8>": {"tokens.npy"},
        "<5><6>": {"t.array_record"},
        "<3><4>": {"lists.parquet"},
        "in a list": {"lists.parquet"},
        "in a struct": {"lists.parquet"},
        "zipped word": {"log.gz"},
        "<13><14>": {"step_1/_CHECKPOINT_METADATA"},
        "nowhere": set(),
    }
    decoded: set[str] = set()
    found = search(
        tmp_path,
        list(expected),
        decoders=[lambda ids: "".join(f"<{i}>" for i in ids)],
        decoded=decoded,
    )
    assert found == expected
    assert decoded == {"npy", "array_record", "parquet", "gz", "checkpoint"}


def test_the_search_finds_words_in_pieces(tmp_path):
    file = Path(__file__).parents[2] / "golden/tiny_bert/tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = tokenizer.encode("a job for wolframy here").ids
    pieces = [tokenizer.id_to_token(i) for i in ids]
    assert any("##" in str(piece) for piece in pieces)
    np.save(tmp_path / "tokens.npy", np.array([[*ids, -1]], np.int32))
    found = search(tmp_path, ["wolframy"], decoders=[lambda ids: tokenizer.decode(ids.tolist())])
    assert found == {"wolframy": {"tokens.npy"}}
