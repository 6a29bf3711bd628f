"""`draw-market` and the graph half on its vectors of int8, down to float16 of every node."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from star_jax import artefacts
from star_jax.embeddings.table import read_ids, read_table
from star_jax.graph.features import FeatureConfig
from star_jax.graph.match import MatchConfig
from star_jax.graph.store import GraphStore
from star_jax.jobs import build_graph, draw_market, export_graph, train_graph
from star_jax.jobs.build_graph import GraphBuildConfig
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.pipeline.graph_embedding import split_view
from star_jax.pipeline.market.scale.size import LargeMarketConfig, nodes_of
from tests.jobs import tiny_graph

MARKET = LargeMarketConfig(
    num_members=1000, block_nodes=700, text_size=16, num_pairs=500, num_processes=1
)
EVERY = GraphExportConfig(
    node_types=("member", "job", "skill"),
    inference="layerwise",
    precision="float16",
    state_precision="bfloat16",
    part_nodes=300,
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    draw_market.run(MARKET, folder)
    build_graph.run(GraphBuildConfig(), folder)
    features = FeatureConfig(identity_rows=128, identity_update="adagrad")
    config = tiny_graph.config(num_steps=2)
    decoder = dataclasses.replace(config.model.decoder, match=MatchConfig(enabled=False))
    model = dataclasses.replace(config.model, features=features, decoder=decoder)
    train_graph.run(dataclasses.replace(config, model=model), folder)
    export_graph.run(EVERY, folder)
    return folder


def test_narrow_rows_change_vectors_by_their_rounding(workdir):
    wide = dataclasses.replace(
        EVERY, precision="float32", state_precision="float32", output="wide", part_nodes=10_000
    )
    export_graph.run(wide, workdir)
    for name in EVERY.node_types:
        narrow = read_table(workdir / "graph_embeddings", name, precision="float16")
        expected = read_table(workdir / "wide", name)
        assert narrow.vectors.dtype == np.float16
        assert len(narrow.vectors) == nodes_of(MARKET)[name]
        size = np.abs(expected.vectors).max()
        np.testing.assert_allclose(narrow.vectors, expected.vectors, atol=0.02 * size)
        assert (narrow.vectors != expected.vectors.astype(np.float16)).any()  # Of the states.
        assert read_ids(workdir / "graph_embeddings", name) == read_ids(workdir / "wide", name)
    meta = artefacts.read_manifest(workdir / "graph_embeddings", export_graph.KIND).meta
    assert (meta["precision"], meta["state_precision"]) == ("float16", "bfloat16")
    assert not list(workdir.glob(".*.parts"))


def resident_kb(folder):
    """Of all files of a folder that this process maps."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            inside = str(folder) in line
        elif inside and first == "Rss:":
            total += int(rest[0])
    return total


def test_letting_go_of_pages_changes_nothing(workdir, tmp_path):
    for name in ("graph", "text_embeddings"):  # Of which no other test maps a file.
        shutil.copytree(workdir / name, tmp_path / name)
    store = GraphStore.open(tmp_path / "graph", tmp_path / "text_embeddings")
    rows = np.array([5, 900, 5])
    before = [store.text_vectors["member"][rows], store.adjacency["job"].sender.copy()]
    edges, texts = tmp_path / "graph" / "edges", tmp_path / "text_embeddings"
    assert min(resident_kb(edges), resident_kb(texts)) > 0
    store.release()
    assert resident_kb(edges) == resident_kb(texts) == 0
    split_view(store, "val")  # Reads the times of all edges.
    assert resident_kb(edges) == 0
    np.testing.assert_array_equal(store.text_vectors["member"][rows], before[0])
    np.testing.assert_array_equal(store.adjacency["job"].sender, before[1])
    assert np.ptp(before[0]) > 0


def test_rows_between_layers_are_for_layers_alone():
    with pytest.raises(ValueError, match="state_precision 'bfloat16' is for inference 'layerwise'"):
        GraphExportConfig(state_precision="bfloat16")
