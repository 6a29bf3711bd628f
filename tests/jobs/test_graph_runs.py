"""A trained graph model: what it learned, how it scores, and the tables it leaves."""

import dataclasses
import logging
import re
import shutil

import jax
import numpy as np
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.table import read_ids, read_table
from star_jax.graph.decoders import DecoderConfig, SeedVectors
from star_jax.graph.features import NodeFeatures
from star_jax.graph.match import MatchConfig
from star_jax.graph.model import match_layout
from star_jax.jobs import export_graph, train_graph
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.pipeline import graph_scoring
from star_jax.pipeline.graph_embedding import Seeds, distinct, splits_before, visible_until
from star_jax.pipeline.graph_layers import NodeEmbedder
from star_jax.pipeline.graph_model import read_model_file
from star_jax.pipeline.graph_programs import RowShards
from star_jax.pipeline.graph_scoring import GraphPairScorer, SplitScoring
from star_jax.pipeline.graph_states import NodeFiles
from star_jax.pipeline.tables.read import read_pairs, read_ranking
from tests.jobs import graph_runs, tiny_graph

ONE = MeshConfig(data=1)


@pytest.fixture(scope="module")
def trained(market, tmp_path_factory):
    """A run that learns, exported."""
    workdir = graph_runs.begin(market, tmp_path_factory.mktemp("trained"))
    train_graph.run(tiny_graph.config(num_steps=60), workdir)
    export_graph.run(GraphExportConfig(mesh=ONE, part_nodes=25), workdir)
    return workdir


def test_learns_who_applies_where(trained):
    attributes = read_model_file(trained / "graph_model").sampling.receiver_keys
    assert attributes is not None
    assert "skill__rev_needs__job" in attributes
    assert not [key for key in attributes if "apply" in key or "contact" in key]
    validation = graph_runs.rows(trained, "val")
    expected = {f"{t}/{m}" for t in ("apply", "contact") for m in ("bce", "auc_uniform")}
    assert set(validation[0]) >= {*expected, "apply/auc_near", "score"}
    best = max(validation, key=lambda row: row["score"])
    assert graph_runs.meta(trained)["best_score"] == best["score"]
    assert best["apply/auc_uniform"] > 0.75
    aucs = [value for name, value in best.items() if name.startswith("apply/auc_")]
    assert best["score"] == pytest.approx(np.mean(aucs))
    assert {"loss_apply", "loss_contact"} <= set(graph_runs.rows(trained, "train")[0])


def test_every_node_has_a_row_and_the_embedding_that_scoring_uses(trained):
    folder = trained / "graph_embeddings"
    manifest = artefacts.read_manifest(folder, "graph_embeddings")
    assert manifest.meta["roles"] == {
        "member": "sender",
        "job": "receiver",
        "recruiter": "sender",
        "member.receiver": "receiver",
    }
    scorer = GraphPairScorer(trained, "graph_model", "split")
    until = visible_until(scorer.trained.store, splits_before("test"))
    for task, name, num_nodes in (
        ("apply", "job", 60),
        ("apply", "member", 40),
        ("contact", "member.receiver", 40),
    ):
        scoring = scorer.of(task, "test")
        assert isinstance(scoring, SplitScoring)
        table = read_table(folder, name)
        node_type = name.split(".")[0]
        np.testing.assert_array_equal(table.entity, np.arange(num_nodes))
        assert read_ids(folder, name) == [f"{node_type}-{i}" for i in range(num_nodes)]
        nodes = np.array([num_nodes - 1, 3, 17], np.int32)
        seeds = Seeds(nodes, None, np.full(3, until, np.int64))
        role = manifest.meta["roles"][name]
        vectors = scoring.vectors(scorer.trained.variables, role, seeds)
        np.testing.assert_allclose(table.vectors[nodes], vectors.embedding, atol=2e-6)


def test_a_grid_says_of_a_pair_what_scoring_pairs_says(trained):
    pairs, ranking = (
        read_pairs(trained / "tables", "apply", "test"),
        read_ranking(trained / "tables", "apply", "test"),
    )
    assert ranking is not None
    for rule in ("split", "time"):
        scorer = GraphPairScorer(trained, "graph_model", rule)
        scores = scorer.score(pairs, "test", "apply")
        grid = scorer.score_grid("apply", ranking, "test")
        assert grid.shape == (len(ranking.sender), len(ranking.candidates))
        compared = 0
        for row in range(len(pairs.label)):
            query = np.flatnonzero(
                (ranking.sender == pairs.sender[row]) & (ranking.t == pairs.t[row])
            )
            candidate = np.flatnonzero(ranking.candidates == pairs.receiver[row])
            if len(query) and len(candidate):
                compared += 1
                found = grid[query[0], candidate[0]]
                np.testing.assert_allclose(found, scores[row], rtol=1e-4, atol=1e-5)
        assert compared >= 8


@pytest.mark.parametrize("num_devices", [1, 3])
def test_a_grid_in_blocks_holds_what_its_pairs_give(trained, num_devices, monkeypatch):
    monkeypatch.setattr(graph_scoring, "_BLOCK_PAIRS", 10)
    monkeypatch.setattr(graph_scoring, "_GRID_RECEIVERS", 4)
    found = GraphPairScorer(trained, "graph_model", "split").trained
    model, layout = found.model, match_layout(found.model.config.decoder, found.model.features)
    assert layout is not None
    variables = jax.tree.map(np.asarray, found.variables)
    widths = (model.config.encoder.dim, sum(width for _, width in layout.parts))
    draws = np.random.default_rng(0)
    senders, receivers = (
        SeedVectors(*(draws.normal(size=(count, width)).astype(np.float32) for width in widths))
        for count in (7, 11)
    )
    rows = RowShards(make_mesh(MeshConfig(data=num_devices)))
    decoder = graph_scoring.PairDecoder(model, model.tasks[0], rows)
    grid = decoder.grid(variables, senders, receivers)
    sender, receiver = (index.ravel() for index in np.indices((7, 11)))
    pairs = decoder(variables, senders, receivers, sender, receiver)
    assert np.ptp(grid) > 1
    np.testing.assert_allclose(grid.ravel(), pairs, rtol=1e-5, atol=1e-5)


def test_scores_do_not_depend_on_the_order_of_pairs(trained):
    pairs = read_pairs(trained / "tables", "apply", "test")
    order = np.random.default_rng(0).permutation(len(pairs.label))
    shuffled = type(pairs)(*(column[order] for column in pairs))
    for rule in ("split", "time"):
        scorer = GraphPairScorer(trained, "graph_model", rule)
        expected = scorer.score(pairs, "test", "apply")[order]
        found = scorer.score(shuffled, "test", "apply")
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_equal_seeds_are_embedded_once():
    seeds = Seeds(
        np.array([3, 1, 3, 3], np.int32), np.array([0, 0, 0, 1], np.int32), np.zeros(4, int)
    )
    unique, row = distinct(seeds)
    assert seeds.text is not None
    assert unique.text is not None
    assert sorted(zip(unique.node.tolist(), unique.text.tolist(), strict=True)) == [
        (1, 0),
        (3, 0),
        (3, 1),
    ]
    np.testing.assert_array_equal(unique.node[row], seeds.node)
    np.testing.assert_array_equal(unique.text[row], seeds.text)


def test_another_config_or_other_inputs_stop_a_begun_run(trained, market, tmp_path):
    with pytest.raises(InputError, match=r"begun with another config \(seed: 0 -> 1\)"):
        train_graph.run(tiny_graph.config(num_steps=60, seed=1), trained)
    workdir = graph_runs.begin(market, tmp_path / "changed")
    shutil.copytree(trained / "graph_model", workdir / "graph_model")
    manifest = workdir / "text_embeddings" / artefacts.MANIFEST
    manifest.write_text(manifest.read_text().replace('"random"', '"other"'))
    with pytest.raises(InputError, match="was begun with text_embeddings"):
        train_graph.run(tiny_graph.config(num_steps=60), workdir)
    with pytest.raises(InputError, match=r"was trained on text_embeddings .* `star train-graph`"):
        GraphPairScorer(workdir, "graph_model", "split")
    for name in (train_graph.JOB, artefacts.MANIFEST):  # As if somebody had removed them.
        (workdir / "graph_model" / name).unlink()
    with pytest.raises(InputError, match=r"trained on other inputs \(text_embeddings: .* -> "):
        train_graph.run(tiny_graph.config(num_steps=60), workdir)


def test_a_type_that_is_no_end_of_a_task_is_exported_too(trained):
    """One layer updates the ends alone: a skill is what its features say."""
    config = GraphExportConfig(mesh=ONE, node_types=("skill", "job"), output="more")
    export_graph.run(config, trained)
    meta = artefacts.read_manifest(trained / "more", "graph_embeddings").meta
    assert meta["roles"] == {"job": "receiver", "skill": "sender"}
    assert meta["rounds"] == {"job": 1, "skill": 0}
    assert meta["num_nodes"] == {"job": 60, "skill": 8}
    assert not (trained / "more" / "member").exists()
    scorer = GraphPairScorer(trained, "graph_model", "split")
    slices = scorer.trained.variables["params"]["features_skill"]
    expected = np.asarray(slices["identity_embedding"]) + np.asarray(slices["bias"])
    table = read_table(trained / "more", "skill")
    np.testing.assert_allclose(table.vectors, expected, rtol=1e-5)
    assert read_ids(trained / "more", "skill") == [f"skill-{i}" for i in range(8)]
    again, before = (
        read_table(trained / name, "job").vectors for name in ("more", "graph_embeddings")
    )
    np.testing.assert_allclose(again, before, atol=2e-6)


def tables_of(workdir, output):
    return {
        path.relative_to(workdir / output).as_posix(): path.read_bytes()
        for path in sorted((workdir / output).rglob("*"))
        if path.is_file() and path.name != artefacts.MANIFEST
    }


@pytest.fixture(scope="module")
def layered(trained):
    """The ends of all tasks in both roles, and a type that is none, layer by layer."""
    config = GraphExportConfig(
        node_types=("member", "job", "recruiter", "skill"),
        inference="layerwise",
        mesh=ONE,
        part_nodes=25,
        output="layered",
    )
    export_graph.run(config, trained)
    assert not (trained / ".layered.parts").exists()
    return config


def test_layer_by_layer_gives_the_same_vectors(trained, layered):
    manifests = [
        artefacts.read_manifest(trained / name, "graph_embeddings").meta
        for name in ("graph_embeddings", layered.output)
    ]
    assert manifests[1]["inference"] == "layerwise"
    assert "inference" not in manifests[0]
    for name in manifests[0]["roles"]:
        expected, found = (
            read_table(trained / folder, name) for folder in ("graph_embeddings", "layered")
        )
        np.testing.assert_allclose(found.vectors, expected.vectors, rtol=1e-5, atol=1e-5)
        for column, same in zip(found[:-1], expected[:-1], strict=True):
            np.testing.assert_array_equal(column, same)
        assert read_ids(trained / "layered", name) == read_ids(trained / "graph_embeddings", name)
    assert len(read_ids(trained / "layered", "skill")) == 8
    embedder = NodeEmbedder.open(trained)
    vectors = embedder("receiver", "member", np.array([33, 2]))
    table = read_table(trained / "layered", "member.receiver")
    np.testing.assert_allclose(vectors, table.vectors[[33, 2]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inference", ["layerwise", "sampled"])
def test_a_killed_export_goes_on_with_the_same_bytes(
    trained, layered, monkeypatch, caplog, inference
):
    config = dataclasses.replace(layered, inference=inference, output=f"killed_{inference}")
    whole = dataclasses.replace(config, output="whole") if inference == "sampled" else layered
    write, written = NodeFiles.write, []

    def noting_write(self, number, rows):
        write(self, number, rows)
        written.append(self.paths[number])

    def dying_write(self, number, rows):
        if len(written) == 3:
            raise KeyboardInterrupt
        noting_write(self, number, rows)

    monkeypatch.setattr(NodeFiles, "write", dying_write)
    with pytest.raises(KeyboardInterrupt):
        export_graph.run(config, trained)
    scratch = trained / f".{config.output}.parts"
    assert set(scratch.rglob("part-*.npy")) == set(written)
    assert not (trained / config.output).exists()
    (written[0].parent / "part-000001-1.partial").write_bytes(b"torn")
    monkeypatch.setattr(NodeFiles, "write", noting_write)
    with caplog.at_level(logging.INFO):
        export_graph.run(config, trained)
    assert len(written) == len(set(written)) > 6
    assert "going on with" in caplog.text
    if inference == "layerwise":
        said = r"layer 1 of senders: \d+ nodes in .* nodes/s, .* fill \d+\.\d %"
        assert re.search(said, caplog.text)
    else:
        export_graph.run(whole, trained)
    assert not scratch.exists()
    assert tables_of(trained, config.output) == tables_of(trained, whole.output)


def test_all_neighbours_are_for_layerwise_alone():
    with pytest.raises(ValueError, match="'all' is for inference 'layerwise'"):
        GraphExportConfig(neighbours="all")


def test_the_manifest_says_what_the_vectors_alone_do_not_give(trained):
    """Equal embeddings of a pair have other scores where the match vectors differ."""
    manifest = artefacts.read_manifest(trained / "graph_embeddings", "graph_embeddings")
    assert manifest.meta["scores_need"] == ["embeddings", "match vectors", "decoder"]
    dot = DecoderConfig(kind="dot", match=MatchConfig(enabled=False))
    assert export_graph.scores_need(dot) == ["embeddings", "decoder"]
    opened = GraphPairScorer(trained, "graph_model", "split").trained
    layout = match_layout(opened.model.config.decoder, opened.model.features)
    assert layout is not None
    width = sum(size for _, size in layout.parts)
    rng = np.random.default_rng(0)
    seeds = [
        SeedVectors(np.ones((1, 8), np.float32), rng.normal(size=(1, width)).astype(np.float32))
        for _ in range(3)
    ]
    decode = jax.jit(
        lambda *pair: opened.model.apply(opened.variables, "apply", *pair, False, method="decode")
    )
    one, other = (decode(seeds[0], receiver) for receiver in seeds[1:])
    assert not np.allclose(one, other, atol=1e-3)


def test_a_type_that_cannot_be_told_apart_is_refused(trained):
    with pytest.raises(InputError, match="'skil', needed one of job, member, recruiter, skill"):
        export_graph.run(GraphExportConfig(node_types=("skil",)), trained)
    file = read_model_file(trained / "graph_model")
    bare = tuple(
        NodeFeatures("skill", 0, 0, (), 0) if each.node_type == "skill" else each
        for each in file.features
    )
    with pytest.raises(InputError, match="'skill', which has no features and no neighbours that"):
        export_graph.targets(
            dataclasses.replace(file, features=bare), GraphExportConfig(node_types=("skill",))
        )
