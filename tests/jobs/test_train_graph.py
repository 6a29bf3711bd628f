import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from star_jax import artefacts
from star_jax.config import InputError, from_json, to_json
from star_jax.embeddings.table import read_ids, read_table
from star_jax.graph.decoders import DecoderConfig, SeedVectors
from star_jax.graph.features import NodeFeatures
from star_jax.graph.match import MatchConfig
from star_jax.graph.model import match_layout
from star_jax.jobs import export_graph, train_graph
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.parallel.mesh import MeshConfig
from star_jax.pipeline.graph_embedding import Seeds, distinct, splits_before, visible_until
from star_jax.pipeline.graph_model import read_model_file
from star_jax.pipeline.graph_scoring import GraphPairScorer, SplitScoring
from star_jax.pipeline.tables.read import read_pairs, read_ranking
from star_jax.train.optimizers import OptimizerConfig
from tests.jobs import tiny_graph
from tests.pipeline import graph_market


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    return graph_market.write(tmp_path_factory.mktemp("market"))


def begin(market, folder):
    """A folder of its own with the same inputs."""
    for name in ("tables", "graph", "text_embeddings"):
        shutil.copytree(market / name, folder / name)
    return folder


def rows(workdir, split, output="graph_model"):
    lines = (workdir / output / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def losses(workdir, output="graph_model"):
    found = rows(workdir, "train", output)
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in found]


def meta(workdir, output="graph_model"):
    return artefacts.read_manifest(workdir / output, "graph_model").meta


@pytest.fixture(scope="module")
def trained(market, tmp_path_factory):
    """A run that learns, exported."""
    workdir = begin(market, tmp_path_factory.mktemp("trained"))
    train_graph.run(tiny_graph.config(num_steps=60), workdir)
    export_graph.run(GraphExportConfig(part_nodes=25), workdir)
    return workdir


def test_learns_who_applies_where(trained):
    attributes = read_model_file(trained / "graph_model").sampling.receiver_keys
    assert attributes is not None
    assert "skill__rev_needs__job" in attributes
    assert not [key for key in attributes if "apply" in key or "contact" in key]
    validation = rows(trained, "val")
    expected = {f"{t}/{m}" for t in ("apply", "contact") for m in ("bce", "auc_uniform")}
    assert set(validation[0]) >= {*expected, "apply/auc_near", "score"}
    best = max(validation, key=lambda row: row["score"])
    assert meta(trained)["best_score"] == best["score"]
    assert best["apply/auc_uniform"] > 0.75
    aucs = [value for name, value in best.items() if name.startswith("apply/auc_")]
    assert best["score"] == pytest.approx(np.mean(aucs))
    assert {"loss_apply", "loss_contact"} <= set(rows(trained, "train")[0])


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
        vectors = scoring.vectors(scorer.trained.variables, role, scoring.sampled(role, seeds))
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


def test_both_paths_train_to_the_same_metrics(market, tmp_path):
    # Adam divides by the size of a gradient: a larger epsilon keeps it from enlarging rounding.
    optimizer = OptimizerConfig(learning_rate=1e-2, eps=1e-3)
    for path in ("dense", "jraph"):
        workdir = begin(market, tmp_path / path)
        train_graph.run(tiny_graph.config(path=path, optimizer=optimizer), workdir)
        export_graph.run(GraphExportConfig(node_types=("job",)), workdir)
    dense, jraph = tmp_path / "dense", tmp_path / "jraph"
    np.testing.assert_allclose(losses(dense), losses(jraph), rtol=1e-4)
    for got, expected in zip(rows(dense, "val"), rows(jraph, "val"), strict=True):
        assert got["score"] == pytest.approx(expected["score"], abs=1e-3)
    assert not (dense / "graph_embeddings" / "member").exists()
    tables = [read_table(folder / "graph_embeddings", "job").vectors for folder in (dense, jraph)]
    np.testing.assert_allclose(*tables, rtol=1e-3, atol=1e-3)


def kill(workdir, plan):
    """Trains in a process of its own that ends in the middle."""
    command = [sys.executable, "-m", "tests.jobs.tiny_graph", str(workdir), plan]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    killed = subprocess.run(command, check=False, capture_output=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert losses(workdir)[-1][0] == tiny_graph.DIE_AT


def test_a_killed_run_goes_on_bit_by_bit(market, tmp_path):
    for name in ("whole", "killed"):
        begin(market, tmp_path / name)
    train_graph.run(tiny_graph.config(), tmp_path / "whole")
    kill(tmp_path / "killed", "exact")
    train_graph.run(tiny_graph.config(), tmp_path / "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert meta(tmp_path / "killed") == meta(tmp_path / "whole")


def test_a_budget_is_measured_once_however_often_a_run_is_killed(market, tmp_path, monkeypatch):
    workdir = begin(market, tmp_path / "budgeted")
    kill(workdir, "budgeted")
    plan = workdir / "graph_model" / "plan.json"
    before = plan.read_bytes()
    settled = json.loads(before)
    assert settled["timing"]
    assert settled["num_steps"] > tiny_graph.DIE_AT

    def measure(**_):
        raise AssertionError("measured again")

    monkeypatch.setattr(train_graph, "measure", measure)
    train_graph.run(tiny_graph.budgeted(), workdir)
    assert plan.read_bytes() == before
    assert [step for step, *_ in losses(workdir)] == list(range(1, settled["num_steps"] + 1))
    assert meta(workdir)["num_steps"] == settled["num_steps"]


def test_two_devices_train(market, tmp_path):
    workdir = begin(market, tmp_path / "two")
    train_graph.run(tiny_graph.config(num_steps=2, mesh=MeshConfig(data=2)), workdir)
    assert [step for step, *_ in losses(workdir)] == [1, 2]


def test_trains_against_the_receivers_of_the_batch(market, tmp_path):
    workdir = begin(market, tmp_path / "softmax")
    config = tiny_graph.config(num_steps=30)
    decoder = DecoderConfig(kind="softmax", match=MatchConfig(enabled=False))
    model = dataclasses.replace(config.model, decoder=decoder)
    train_graph.run(dataclasses.replace(config, model=model), workdir)
    first, *_, last = (row["loss_apply"] for row in rows(workdir, "train"))
    assert last < 0.9 * first


def test_without_text_and_with_fresh_negatives(market, tmp_path):
    workdir = begin(market, tmp_path / "graph")
    shutil.rmtree(workdir / "text_embeddings")
    config = tiny_graph.config(
        num_steps=2, negatives="uniform", num_negatives=2, receiver_view="all"
    )
    train_graph.run(train_graph.without_text(config), workdir)
    assert read_model_file(workdir / "graph_only_model").sampling.receiver_keys is None
    export_graph.run(export_graph.without_text(GraphExportConfig()), workdir)
    assert meta(workdir, "graph_only_model")["text"] is False
    assert len(losses(workdir, "graph_only_model")) == 2
    assert read_table(workdir / "graph_only_embeddings", "job").vectors.shape == (60, 8)
    scores = GraphPairScorer(workdir, "graph_only_model", "split").score(
        read_pairs(workdir / "tables", "apply", "test"), "test", "apply"
    )
    assert np.isfinite(scores).all()


def test_another_config_or_other_inputs_stop_a_begun_run(trained, market, tmp_path):
    with pytest.raises(InputError, match=r"begun with another config \(seed: 0 -> 1\)"):
        train_graph.run(tiny_graph.config(num_steps=60, seed=1), trained)
    workdir = begin(market, tmp_path / "changed")
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
    config = GraphExportConfig(node_types=("skill", "job"), output="more")
    export_graph.run(config, trained)
    meta = artefacts.read_manifest(trained / "more", "graph_embeddings").meta
    assert meta["roles"] == {"job": "receiver", "skill": "sender"}
    assert meta["rounds"] == {"job": 1, "skill": 0}
    assert meta["num_nodes"] == {"job": 60, "skill": 8}
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 must be >= 1"),
        ({"positive_weight": 0.0}, "positive_weight 0.0 must be > 0"),
        ({"task_weights": (("applly", 1.0),)}, None),
    ],
)
def test_wrong_configs_are_refused(market, change, message):
    if message is None:
        with pytest.raises(InputError, match="task_weights names 'applly', needed one of"):
            train_graph.run(tiny_graph.config(**change), market)
    else:
        with pytest.raises(ValueError, match=message):
            tiny_graph.config(**change)


def test_fewer_hops_than_layers_are_refused():
    with pytest.raises(ValueError, match="fanouts have 2 hops, needed 1"):
        tiny_graph.config(fanouts=type(tiny_graph.config().fanouts)(total=(4, 2)))


def test_the_config_survives_json():
    config = tiny_graph.config()
    assert from_json(GraphTrainConfig, to_json(config)) == config
