import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import trees
from star_jax.graph.decoders import Decoder, DecoderConfig, SeedVectors
from star_jax.graph.encoder import GraphEncoderConfig
from star_jax.graph.match import MatchConfig
from star_jax.graph.model import GraphBatch, GraphModel, GraphModelConfig, LinkTask, init_model
from star_jax.graph.objective import make_loss
from tests.graph.subgraphs import FEATURES, KEYS, random_pairs

TASKS = (LinkTask("apply", "member", "job"), LinkTask("again", "member", "job"))
CONFIG = GraphModelConfig(
    encoder=GraphEncoderConfig(dim=8, multiplier=1, layers=1, heads=2, batch_norm=False),
    decoder=DecoderConfig(hidden_size=8, dropout=0.0, match=MatchConfig(width=4, text_width=6)),
    kernel_l2=0.01,
)
WEIGHTS, POSITIVE = {"apply": 1.0, "again": 0.3}, {"apply": 1.0, "again": 4.0}


def build(config=CONFIG, tasks=TASKS):
    return GraphModel(config, FEATURES, KEYS, tasks)


def batch_of(*seeds):
    """One shard per seed; both tasks have pairs of their own."""

    def one_hop(pairs):
        cut = {role: getattr(pairs, role) for role in ("sender", "receiver")}
        return pairs._replace(**{role: s._replace(hops=s.hops[:1]) for role, s in cut.items()})

    shards = [
        {task.name: one_hop(random_pairs(seed + 10 * n)) for n, task in enumerate(TASKS)}
        for seed in seeds
    ]
    tasks = jax.tree.map(lambda *parts: np.stack(parts), *shards)
    return GraphBatch(tasks, np.concatenate([pairs.mask for pairs in tasks.values()], axis=1))


@pytest.fixture(scope="module")
def params():
    made, statistics = init_model(build(), 0)
    assert not statistics
    return made


def loss_of(params, batch, config=CONFIG, statistics=None):
    loss = make_loss(build(config), task_weights=WEIGHTS, positive_weight=POSITIVE)
    return jax.jit(loss)(params, statistics or {}, {}, batch, jax.random.key(1))


def test_the_loss_is_the_weighted_sum_of_the_tasks_and_of_squared_kernels(params):
    batch = batch_of(0)
    value, (metrics, _) = loss_of(params, batch)
    single = jax.tree.map(lambda array: array[0], batch.tasks)
    outputs = jax.jit(build().apply, static_argnums=2)({"params": params}, single, False)
    expected = 0.0
    for name, weight in WEIGHTS.items():
        pairs, x = single[name], np.asarray(outputs.links[name], np.float64)
        rows = np.logaddexp(0, np.where(pairs.label == 1, -x, x))
        weights = np.where(pairs.label == 1, POSITIVE[name], 1.0)[:6]  # The last one is padding.
        of_task = (rows[:6] * weights).sum() / weights.sum()
        assert metrics[f"loss_{name}"] == pytest.approx(of_task, rel=1e-5)
        expected += weight * of_task
    encoders = {name: tree for name, tree in params.items() if name.startswith("encoder")}
    kernels = [path for path in trees.paths(encoders) if path.endswith("kernel")]
    assert len(kernels) == 2 * 5
    squares = sum(
        float((leaf**2).sum()) for leaf in jax.tree.leaves(trees.select(encoders, ".*kernel"))
    )
    assert value == pytest.approx(expected + 0.01 * squares, rel=1e-5)


def test_losses_of_devices_average(params):
    """Here every shard has as many real pairs of each label as its neighbour."""
    pairs = batch_of(0, 1)
    label = np.tile(np.array([1, 0, 1, 0, 1, 0, 1], np.float32), (2, 1))
    both = pairs._replace(tasks={n: p._replace(label=label) for n, p in pairs.tasks.items()})
    alone = [jax.tree.map(lambda array, i=i: array[i : i + 1], both) for i in range(2)]
    expected = np.mean([loss_of(params, each)[0] for each in alone])
    assert loss_of(params, both)[0] == pytest.approx(expected, rel=1e-5)


def test_padding_pairs_change_nothing(params):
    batch = batch_of(0)

    def shout(pairs):
        label, rows = pairs.label.copy(), pairs.sender_row.copy()
        label[:, -1], rows[:, -1] = 7.0, 3
        return pairs._replace(label=label, sender_row=rows)

    loud = batch._replace(tasks={name: shout(pairs) for name, pairs in batch.tasks.items()})
    assert loss_of(params, loud)[0] == loss_of(params, batch)[0]


def test_parameters_do_not_depend_on_the_batch(params):
    """A model made from nothing but its schema runs on any budget, and every parameter is used."""
    batch = batch_of(0)

    def value(params):
        loss = make_loss(build(), task_weights=WEIGHTS, positive_weight=POSITIVE)
        return loss(params, {}, {}, batch, jax.random.key(1))[0]

    moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
    gradients = jax.jit(jax.grad(value))(moved)
    for path in trees.paths(gradients):
        leaf = gradients
        for name in path.split("/"):
            leaf = leaf[name]
        assert np.isfinite(leaf).all(), path
        if not path.endswith("/missing"):  # Not every type misses a text here.
            assert np.abs(leaf).max() > 0, path


def test_a_dual_encoder_shares_nothing_but_the_features():
    dual, _ = init_model(build(), 0)
    shared, _ = init_model(
        build(dataclasses.replace(CONFIG, encoder=dataclasses.replace(CONFIG.encoder, dual=False))),
        0,
    )
    assert {"encoder_sender", "encoder_receiver"} <= dual.keys()
    assert "encoder" in shared
    assert {n for n in dual if n.startswith("features")} == {
        f"features_{each.node_type}" for each in FEATURES
    }
    assert trees.count(dual["encoder_sender"]) < trees.count(shared["encoder"])  # Two seed types.


def test_running_statistics_move_in_training_only():
    config = dataclasses.replace(
        CONFIG, encoder=dataclasses.replace(CONFIG.encoder, batch_norm=True)
    )
    params, statistics = init_model(build(config), 0)
    _, (_, moved) = loss_of(params, batch_of(0), config, statistics)
    changed = jax.tree.map(lambda a, b: bool((a != b).all()), statistics, moved)
    assert all(jax.tree.leaves(changed))
    _, (_, of_two) = loss_of(params, batch_of(0, 1), config, statistics)
    assert jax.tree.map(jnp.shape, of_two) == jax.tree.map(jnp.shape, statistics)


@pytest.mark.parametrize("kind", ["cosine", "dot", "softmax"])
def test_products_and_cosines(kind):
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 5, 4)).astype(np.float32)
    u[2] = 0
    seeds = [SeedVectors(jnp.asarray(x), jnp.zeros((5, 0))) for x in (u, v)]
    decoder = Decoder(DecoderConfig(kind=kind, match=MatchConfig(enabled=False)), None)
    params = {"scale": jnp.float32(3.0), "bias": jnp.float32(0.25)}
    got = jax.jit(decoder.apply, static_argnums=3)({"params": params}, *seeds, False)
    dot = (u * v).sum(axis=1)
    norms = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    expected = dot if kind != "cosine" else dot / np.maximum(norms, 1e-6)
    np.testing.assert_allclose(got, 3 * expected + 0.25, rtol=1e-5, atol=1e-6)
    if kind == "softmax":
        grid = jax.jit(decoder.apply, static_argnums=3)({"params": params}, *seeds, True)
        np.testing.assert_allclose(grid, 3 * (u @ v.T) + 0.25, rtol=1e-4, atol=1e-5)
