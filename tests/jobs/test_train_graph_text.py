"""`train-graph` with the text encoder in its step, and what the commands after it read."""

import dataclasses
import shutil

import numpy as np
import pytest

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.embeddings.table import read_table
from star_jax.evaluation.auc import roc_auc
from star_jax.jobs import export_text, run, train_graph
from star_jax.parallel.mesh import MeshConfig
from star_jax.pipeline.graph_engines import EngineConfig
from star_jax.pipeline.graph_scoring import GraphPairScorer
from star_jax.pipeline.graph_text import GraphTextConfig
from star_jax.pipeline.tables.read import read_pairs
from star_jax.train.exchange import ExchangeConfig
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig
from star_jax.train.reporter import Reporter
from tests.jobs import graph_runs, tiny_graph
from tests.pipeline import text_in_graph

# Dropout is on in the graph and in the adapters, so that keys matter.
CONFIG = tiny_graph.config(
    num_steps=4,
    tasks=("apply",),
    batch_size=24,
    validation_pairs=1000,
    optimizer=OptimizerConfig(learning_rate=3e-2),
    text_encoder=GraphTextConfig(mode="lora", lm_train_nodes=8, rate=0.5, num_lengths=1),
)


@pytest.fixture(scope="module")
def begun(market, tmp_path_factory):
    return text_in_graph.write(market, tmp_path_factory.mktemp("texts") / "begun", "tiny_t5")


def copied(begun, folder):
    shutil.copytree(begun, folder)
    return folder


def auc_by_kind(workdir):
    pairs = read_pairs(workdir / "tables", "apply", "val")
    logits = GraphPairScorer(workdir, "graph_model", "split").score(pairs, "val", "apply")
    label = pairs.label == 1
    return {
        kind: roc_auc(label[rows], logits[rows])
        for kind in ("uniform", "near")
        for rows in [label | (pairs.negative == kind)]
    }


@pytest.mark.slow
def test_a_run_goes_on_bit_by_bit_and_its_vectors_give_the_scores_of_validation(
    begun, tmp_path, monkeypatch
):
    whole, killed = (copied(begun, tmp_path / name) for name in ("whole", "killed"))
    shutil.rmtree(killed / "text_embeddings")  # Not read.
    train_graph.run(CONFIG, whole)
    with monkeypatch.context() as patch:
        log = Reporter.log

        def failing_log(self, step, split, metrics):
            if (step, split) == (3, "train"):
                raise KeyboardInterrupt
            log(self, step, split, metrics)

        patch.setattr(Reporter, "log", failing_log)
        with pytest.raises(KeyboardInterrupt):
            train_graph.run(CONFIG, killed)
    train_graph.run(CONFIG, killed)
    assert graph_runs.losses(killed) == graph_runs.losses(whole)
    assert [step for step, *_ in graph_runs.losses(killed)] == [1, 2, 3, 4]
    assert all(row["text_tokens"] > 24 for row in graph_runs.rows(whole, "train"))
    with pytest.raises(
        InputError,
        match="trained with its encoder; run `star export-text` with --source graph_model",
    ):
        auc_by_kind(killed)
    exported = dataclasses.replace(text_in_graph.EXPORT, source="graph_model")
    for folder in (whole, killed):
        export_text.run(exported, folder)
    vectors, again, before = (
        read_table(folder, "job").vectors
        for folder in (
            whole / "graph_model_texts",
            killed / "graph_model_texts",
            whole / "text_embeddings",
        )
    )
    np.testing.assert_array_equal(vectors, again)
    best = graph_runs.meta(whole)["best_step"]
    assert best > 0  # Else nothing is shown.
    assert np.abs(vectors - before).max() > 1e-3
    found = next(row for row in graph_runs.rows(whole, "val") if row["step"] == best)
    for kind, auc in auc_by_kind(whole).items():
        assert abs(auc - found[f"auc_{kind}"]) < 1e-6
    artefacts.seal(whole / "graph_model", "graph_model", graph_runs.meta(whole) | {"other": 1})
    with pytest.raises(InputError, match="graph_model_texts was made by another model than"):
        auc_by_kind(whole)


@pytest.mark.slow
def test_devices_train_encoders_of_their_own_and_average_them(begun, tmp_path):
    workdir = copied(begun, tmp_path / "local")
    config = dataclasses.replace(
        CONFIG,
        mesh=MeshConfig(data=2),
        plan=PlanConfig(num_steps=2, budget_s=None),
        exchange=ExchangeConfig(every=2, of="parameters"),
    )
    train_graph.run(config, workdir)
    rows = graph_runs.rows(workdir, "train")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["text_tokens"] > 100 and np.isfinite(row["loss"]) for row in rows)
    pairs = read_pairs(workdir / "tables", "apply", "train")
    num_groups = graph_runs.meta(workdir)["num_epochs"] * len(np.unique(pairs.group)) / 2
    assert num_groups == 2 * 2 * (12 // np.unique(pairs.group, return_counts=True)[1].max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"exchange": ExchangeConfig(), "mesh": MeshConfig(data=1, fsdp=2)},
            "mesh.fsdp=2 with exchange, needed 1",
        ),
        (
            {"exchange": ExchangeConfig(), "mesh": MeshConfig(data=1, tensor=2)},
            "mesh.tensor=2 with exchange, needed 1",
        ),
        ({"engine": EngineConfig(kind="mesh")}, "engine.kind=mesh with text_encoder, needed host"),
        (
            {"gradient_conflicts": True},
            "gradient_conflicts=True with text_encoder, needed False",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lm_train_nodes": 0}, "lm_train_nodes 0 must be >= 1, or None"),
        ({"mode": "frozen", "lm_train_nodes": 3}, "lm_train_nodes 3 with mode frozen"),
        ({"rate": 0.0}, "rate 0.0 must be > 0"),
        ({"num_lengths": 0}, "num_lengths 0 must be >= 1"),
    ],
)
def test_wrong_text_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GraphTextConfig(**fields)


def test_a_run_encodes_texts_anew_between_training_and_export():
    from configs.run import quickstart

    config = quickstart.get_config()
    encoder = dataclasses.replace(config.train_graph, text_encoder=GraphTextConfig())
    stages = {
        each.name: each for each in run.stages(dataclasses.replace(config, train_graph=encoder))
    }
    assert stages["train-graph"].inputs == ("tables", "graph", "text")
    assert stages["export-graph-text"].config.source == "graph_model"
    made = stages["export-graph-text"].output
    assert made == "graph_model_texts"
    for reader in ("export-graph", "evaluate"):
        assert made in stages[reader].inputs
    assert stages["train-graph-only"].config.text_encoder is None
