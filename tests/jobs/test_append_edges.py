"""`star append-edges` on a graph of `star build-graph`."""

import json

import pytest

from star_jax import artefacts
from star_jax.config import InputError, from_json, to_json
from star_jax.graph.store import GraphStore
from star_jax.jobs import append_edges, build_graph
from star_jax.jobs.append_edges import AppendConfig, run
from tests.graph.test_append import town
from tests.jobs.test_build_graph import write_tables
from tests.test_bad_inputs import full_disk, snapshot

LIMITS = {"memory_limit_gib": 0.5, "num_threads": 1}


@pytest.fixture
def grown(tmp_path):
    """A working directory with the graph of a world's beginning, and a folder with the rest."""
    whole = town()
    old = whole.begun(2, 3, 3)
    write_tables(tmp_path / "w", old)
    build_graph.run(build_graph.GraphBuildConfig(), tmp_path / "w")
    whole.write(tmp_path / "new", after=old)
    return tmp_path


def test_the_graph_is_replaced_by_its_next_version(grown):
    before = GraphStore.open(grown / "w" / "graph", None)
    run(
        AppendConfig(additions=grown / "new", parent_version=before.version[:12], **LIMITS),
        grown / "w",
    )
    after = GraphStore.open(grown / "w" / "graph", None)
    artefacts.verify(after.folder)
    assert after.meta.lineage[-1].parent == before.version
    write_tables(grown / "all", town())
    config = build_graph.GraphBuildConfig(statistics_of=grown / "w" / "graph")
    build_graph.run(config, grown / "all")
    assert GraphStore.open(grown / "all" / "graph", None).version == after.version
    with pytest.raises(InputError, match=r"parent_version is \w+, .*graph has version \w+: it ch"):
        run(AppendConfig(additions=grown / "new", parent_version=before.version), grown / "w")
    assert GraphStore.open(grown / "w" / "graph", None).version == after.version


def test_a_parent_elsewhere_stays(grown):
    parent = grown / "w" / "graph"
    before = artefacts.digest(parent)
    run(AppendConfig(additions=grown / "new", parent=parent, **LIMITS), grown / "next")
    assert artefacts.digest(parent) == before
    lineage = GraphStore.open(grown / "next" / "graph", None).meta.lineage
    assert [each.parent for each in lineage] == [GraphStore.open(parent, None).version]


def test_a_parent_with_other_bytes_than_it_was_written_with_is_refused(grown):
    path = grown / "w" / "graph" / "edges" / "job" / "time.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"time.npy does not have the sha256 it was written with"):
        run(AppendConfig(additions=grown / "new", **LIMITS), grown / "w")


def test_a_parent_that_changes_meanwhile_is_not_overwritten(grown, monkeypatch):
    graph = grown / "w" / "graph"
    append = append_edges.append

    def slow(*args):
        made = append(*args)
        manifest = json.loads((graph / artefacts.MANIFEST).read_text())
        manifest["meta"]["version"] = "0123456789ab"
        (graph / artefacts.MANIFEST).write_text(json.dumps(manifest))
        return made

    monkeypatch.setattr(append_edges, "append", slow)
    with pytest.raises(InputError, match="and has 0123456789ab now: it changed while edges were"):
        run(AppendConfig(additions=grown / "new", **LIMITS), grown / "w")
    assert GraphStore.open(graph, None).version == "0123456789ab"
    assert sorted(path.name for path in (grown / "w").iterdir()) == ["graph", "tables"]


def test_a_full_disk_leaves_the_old_version(grown):
    before = snapshot(grown)
    with full_disk(512), pytest.raises(OSError, match="File too large"):
        run(AppendConfig(additions=grown / "new", **LIMITS), grown / "w")
    assert snapshot(grown) == before


def test_the_config_is_read_back_and_checked(tmp_path):
    config = AppendConfig(additions=tmp_path, parent=tmp_path, parent_version="0123")
    assert from_json(AppendConfig, to_json(config)) == config
    with pytest.raises(ValueError, match="num_threads is 0, needed at least 1"):
        AppendConfig(additions=tmp_path, num_threads=0)
    with pytest.raises(ValueError, match="which gives the age_unit and the text_kinds"):
        build_graph.GraphBuildConfig(
            options=build_graph.BuildOptions(age_unit=2.0), statistics_of=tmp_path
        )
