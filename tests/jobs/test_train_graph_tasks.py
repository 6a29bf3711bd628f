"""Several tasks: which are trained, and whether their gradients agree."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from star_jax import trees
from star_jax.config import InputError
from star_jax.graph.conflicts import make_conflicts
from star_jax.graph.engines.host import HostEngine
from star_jax.graph.model import init_model
from star_jax.graph.objective import make_loss
from star_jax.jobs import train_graph
from star_jax.pipeline.graph_data import GraphData
from star_jax.pipeline.graph_model import open_store, read_model_file
from star_jax.pipeline.graph_training import describe
from star_jax.pipeline.tables.read import read_meta
from tests.jobs import graph_runs, tiny_graph

WEIGHTS = {"apply": 2.0, "contact": 1.0}


def without_dropout(model):
    return dataclasses.replace(
        model,
        encoder=dataclasses.replace(model.encoder, dropout=0.0),
        decoder=dataclasses.replace(model.decoder, dropout=0.0),
    )


def test_conflicts_are_cosines_of_gradients_that_are_taken_one_by_one(market):
    config = tiny_graph.config(model=without_dropout(tiny_graph.config().model))
    store, meta = open_store(market, "vectors"), read_meta(market / "tables")
    file = describe(config, market, store, meta)
    batch = next(GraphData(config, market, file, store, meta, 1, HostEngine(store)).batches(6))
    model = file.build()
    params, statistics = init_model(model, 0)
    found = jax.jit(make_conflicts(model, WEIGHTS))(params, statistics, batch, jax.random.key(0))
    plain = model.clone(config=dataclasses.replace(model.config, kernel_l2=0.0))
    gradients = []
    for name in WEIGHTS:
        weights = dict.fromkeys(WEIGHTS, 0.0) | {name: 1.0}
        loss = make_loss(plain, task_weights=weights, positive_weight=WEIGHTS)
        whole, _ = jax.jit(jax.grad(loss, has_aux=True))(
            params, statistics, {}, batch, jax.random.key(0)
        )
        shared = trees.select(whole, r"encoder_.*|features_[^/]*/(?!identity).*|match/text.*")
        identities = trees.select(whole, r"features_[^/]*/identity_unseen")
        leaves = jax.tree.leaves((shared, identities))
        gradients.append(np.concatenate([np.asarray(leaf).ravel() for leaf in leaves]))
    a, b = gradients
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert set(found) == {"conflict/apply~contact"}
    assert found["conflict/apply~contact"] == pytest.approx(cosine, abs=1e-5)
    assert 1e-4 < abs(cosine) < 0.999


def test_conflicts_are_logged_and_a_task_can_be_trained_alone(market, tmp_path):
    both = graph_runs.begin(market, tmp_path / "both")
    train_graph.run(tiny_graph.config(num_steps=2, gradient_conflicts=True), both)
    rows = graph_runs.rows(both, "val")
    assert all(-1.0 <= row["conflict/apply~contact"] <= 1.0 for row in rows)
    assert "apply/auc_uniform" in rows[0]
    alone = tiny_graph.config(num_steps=2, tasks=("contact",), output="alone")
    train_graph.run(alone, both)
    file = read_model_file(both / "alone")
    assert [task.name for task in file.tasks] == ["contact"]
    row = graph_runs.rows(both, "train", "alone")[0]
    assert "loss_contact" in row
    assert "loss_apply" not in row


def test_tasks_that_are_not_there_are_named(market):
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tasks": ("buy",)}, "tasks names 'buy', needed one of apply, contact"),
        ({"task_weights": (("buy", 1.0),)}, "task_weights names 'buy', needed one of"),
        ({"tasks": ("apply",), "gradient_conflicts": True}, "compares tasks, needed two"),
    ]
    for fields, message in cases:
        config = tiny_graph.config(**fields)
        store, meta = open_store(market, "vectors"), read_meta(market / "tables")
        with pytest.raises(InputError, match=message):
            describe(config, market, store, meta)
