"""Columns of nodes that are predicted: what is trained on, what is seen of them, what comes out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.graph.engines.host import HostEngine
from star_jax.graph.heads import NodeClasses, NodeTask, classification_loss, held_out
from star_jax.graph.model import init_model
from star_jax.jobs import train_graph
from star_jax.pipeline.graph_classes import classify
from star_jax.pipeline.graph_data import GraphData
from star_jax.pipeline.graph_model import open_store
from star_jax.pipeline.graph_training import describe
from star_jax.pipeline.tables.read import read_meta
from tests.jobs import graph_runs, tiny_graph

SITE = NodeTask(node_type="job", column="site", weight=2.0, holdout=0.25)
MODEL = dataclasses.replace(tiny_graph.config().model, node_tasks=(SITE,))


def test_the_loss_by_hand():
    logits = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    label = np.asarray([[0, 1, 2, 1], [2, 2, 0, 1]])
    mask = np.asarray([[False, True, True, False], [True, False, False, True]])
    loss, accuracy = classification_loss(NodeClasses(*map(jnp.asarray, (logits, label, mask))))
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    taken = [
        (shares[i, j, label[i, j]], shares[i, j].argmax() == label[i, j])
        for i, j in zip(*np.nonzero(mask), strict=True)
    ]
    assert float(loss) == pytest.approx(-np.mean([np.log(share) for share, _ in taken]), rel=1e-5)
    assert float(accuracy) == pytest.approx(np.mean([right for _, right in taken]))
    nothing = NodeClasses(jnp.asarray(logits), jnp.asarray(label), jnp.zeros((2, 4), bool))
    assert [float(value) for value in classification_loss(nothing)] == [0.0, 0.0]


def test_a_share_of_the_nodes_is_held_out_by_number_alone():
    nodes = np.arange(20_000, dtype=np.int32)
    kept = np.asarray(held_out(SITE, nodes))
    assert abs(kept.mean() - SITE.holdout) < 0.01
    np.testing.assert_array_equal(np.asarray(held_out(SITE, nodes[100:110])), kept[100:110])
    other = held_out(NodeTask(node_type="member", column="site", holdout=0.25), nodes)
    assert abs(np.mean(kept & np.asarray(other)) - SITE.holdout**2) < 0.01


@pytest.fixture(scope="module")
def batch(market):
    """A model with a head, and a batch of it."""
    config = tiny_graph.config(model=MODEL)
    store, meta = open_store(market, "vectors"), read_meta(market / "tables")
    file = describe(config, market, store, meta)
    data = GraphData(config, market, file, store, meta, 1, HostEngine(store))
    single = jax.tree.map(lambda leaf: leaf[0], next(data.batches(6)).tasks)
    model = file.build()
    params, statistics = init_model(model, 0)
    return model, {"params": params, "batch_stats": statistics}, single


def test_a_column_that_is_predicted_is_no_feature(batch):
    model, variables, tasks = batch
    run = jax.jit(lambda variables, tasks: model.apply(variables, tasks, False))
    found = run(variables, tasks)

    def changed(subgraph):
        jobs = subgraph.nodes["job"]
        codes = (jobs.categorical + 1) % 3
        return subgraph._replace(nodes=subgraph.nodes | {"job": jobs._replace(categorical=codes)})

    other = {
        name: pairs._replace(sender=changed(pairs.sender), receiver=changed(pairs.receiver))
        if "job" in pairs.sender.nodes and "job" in pairs.receiver.nodes
        else pairs
        for name, pairs in tasks.items()
    }
    again = run(variables, other)
    np.testing.assert_array_equal(again.links["apply"], found.links["apply"])
    classes = found.classes["job.site"]
    np.testing.assert_array_equal(again.classes["job.site"].logits, classes.logits)
    assert not np.array_equal(again.classes["job.site"].label, classes.label)
    jobs = tasks["apply"].receiver.nodes["job"]
    size = len(classes.label)
    expected = jobs.mask[:size] & (jobs.categorical[:size, 0] > 0)
    expected &= ~np.asarray(held_out(SITE, jobs.node[:size]))
    np.testing.assert_array_equal(classes.mask, expected)
    assert 0 < expected.sum() < jobs.mask[:size].sum()


def test_a_head_is_trained_validated_and_asked(market, tmp_path):
    workdir = graph_runs.begin(market, tmp_path / "heads")
    train_graph.run(tiny_graph.config(num_steps=40, model=MODEL), workdir)
    rows = graph_runs.rows(workdir, "train")
    first, *_, last = (row["loss_job.site"] for row in rows)
    assert last < 0.8 * first
    row = graph_runs.rows(workdir, "val")[-1]
    assert 0.5 <= row["commonest_job.site"] < 1.0
    nodes = np.arange(60, dtype=np.int32)
    shares = classify(workdir, "job.site", nodes)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-5)
    site, kept = nodes % 3, np.asarray(held_out(SITE, nodes))
    known = (site > 0) & ~kept
    assert np.mean(shares.argmax(axis=1)[known] == site[known]) > row["accuracy_job.site"]
    with pytest.raises(InputError, match=r"has no head 'job\.pay', needed one of \['job\.site'\]"):
        classify(workdir, "job.pay", nodes)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (NodeTask(node_type="skill", column="site"), "names 'skill', needed an end of a trained"),
        (
            NodeTask(node_type="job", column="pay"),
            r"the column 'pay' of job, needed one of \['site'",
        ),
    ],
)
def test_what_cannot_be_predicted_is_named(market, task, message):
    config = tiny_graph.config(model=dataclasses.replace(MODEL, node_tasks=(task,)))
    store, meta = open_store(market, "vectors"), read_meta(market / "tables")
    with pytest.raises(InputError, match=message):
        describe(config, market, store, meta)


def test_shares_and_weights_are_checked():
    with pytest.raises(ValueError, match=r"holdout 1\.0 of job\.site must be between 0 and 1"):
        NodeTask(node_type="job", column="site", holdout=1.0)
    with pytest.raises(ValueError, match=r"weight 0\.0 of job\.site must be > 0"):
        NodeTask(node_type="job", column="site", weight=0.0)
