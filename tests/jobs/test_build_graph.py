"""`star build-graph` on tables as `star import` leaves them."""

import json

import pyarrow.parquet as pq
import pytest

from star_jax import artefacts
from star_jax.config import InputError, from_json, to_json
from star_jax.graph.store import GraphStore
from star_jax.jobs.build_graph import GraphBuildConfig, run
from tests.graph.test_build import small


def write_tables(workdir, world):
    """The tables of a world as an artefact."""
    tables = world.write(workdir / "tables")
    meta = {
        "dataset": "small",
        "time_unit": "unix_s",
        "node_types": {
            name: {
                "count": len(times),
                "categorical": dict.fromkeys(world.categorical.get(name, {}), 10),
                "dense": list(world.dense.get(name, {})),
                "has_texts": name in world.texts,
                "has_time": any(t is not None for t in times),
            }
            for name, times in world.nodes.items()
        },
        "edge_types": [
            dict(zip(("sender", "relation", "receiver"), key.split("__"), strict=True))
            | {"kind": "interaction", "count": len(edges), "has_time": True, "has_split": True}
            for key, edges in world.edges.items()
        ],
        "tasks": {},
        "cohorts": [],
        "reference": None,
        "import_report": {},
    }
    artefacts.seal(workdir / "tables", "tables", meta)
    return tables


def test_the_job_builds_what_the_manifest_describes(tmp_path):
    write_tables(tmp_path, small())
    run(GraphBuildConfig(), tmp_path)
    store = GraphStore.open(tmp_path / "graph", None)
    expected = small().build(tmp_path / "direct")
    assert store.meta.age_unit == 86400.0
    assert store.version == expected.version
    assert store.meta.schema == expected.meta.schema


def test_a_broken_table_leaves_no_graph_behind(tmp_path):
    tables = write_tables(tmp_path, small())
    path = tables.edges["member__apply__job"]
    edges = pq.read_table(path)
    pq.write_table(edges.drop_columns(["weight"]), path)
    manifest = json.loads((tmp_path / "tables" / artefacts.MANIFEST).read_text())
    artefacts.seal(tmp_path / "tables", "tables", manifest["meta"])
    with pytest.raises(InputError, match=r"reading the tables: .*weight"):
        run(GraphBuildConfig(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]


def test_without_tables_the_message_names_the_command(tmp_path):
    with pytest.raises(InputError, match="run `star import` first"):
        run(GraphBuildConfig(), tmp_path)


def test_the_config_is_read_back_as_written():
    config = GraphBuildConfig()
    assert from_json(GraphBuildConfig, to_json(config)) == config
