"""Which rows of the identity tables are read, and the model that is given those alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import trees
from star_jax.graph.features import FeatureConfig, NodeFeatures, look_up
from star_jax.graph.identities import TABLES, num_rows, read_rows, with_rows
from star_jax.graph.model import GraphModel, init_model, rows_read
from star_jax.graph.objective import make_loss
from tests.graph.subgraphs import FEATURES, KEYS, random_subgraph
from tests.graph.test_model import CONFIG, POSITIVE, TASKS, WEIGHTS, batch_of

NUM_ROWS = 8  # For 12 skills.
HASHED = NodeFeatures("skill", NUM_ROWS, 0, (), 0, hashed=True)


def model_of(*, match=True):
    """Skills are hashed; members have more rows than nodes."""
    member = dataclasses.replace(FEATURES[1], num_identities=64)
    decoder = CONFIG.decoder
    if not match:
        decoder = dataclasses.replace(
            decoder, match=dataclasses.replace(decoder.match, enabled=False)
        )
    config = dataclasses.replace(CONFIG, decoder=decoder)
    return GraphModel(config, (FEATURES[0], member, HASHED), KEYS, TASKS[:1])


def shapes_of(model):
    return jax.eval_shape(lambda: init_model(model, 0)[0])


def test_two_hashes_tell_nodes_apart():
    features = NodeFeatures("company", 1 << 10, 0, (), 0, hashed=True)
    rows = np.asarray(read_rows(features, np.arange(1 << 14, dtype=np.int32)))
    assert rows.min() == 0
    assert rows.max() == (1 << 10) - 1
    counts = np.stack([np.bincount(rows[:, k], minlength=1 << 10) for k in range(2)])
    # Poisson of mean 16: its variance is its mean.
    np.testing.assert_allclose(counts.var(axis=1), 16, rtol=0.25)
    assert np.abs(np.corrcoef(rows.T)[0, 1]) < 0.03
    _, sharing = np.unique(np.sort(rows, axis=1), axis=0, return_counts=True)
    pairs = (sharing * (sharing - 1) // 2).sum()
    expected = (1 << 14) ** 2 / 2 * 2 / (1 << 10) ** 2  # Of one hash: 131,072.
    assert expected == 256
    assert abs(pairs - expected) < 4 * expected**0.5
    other = dataclasses.replace(features, node_type="skill")
    assert not np.array_equal(rows, read_rows(other, np.arange(1 << 14, dtype=np.int32)))
    # Checkpoints depend on the rows: never other ones.
    np.testing.assert_array_equal(rows[:3], [[871, 542], [732, 219], [78, 604]])


def test_a_hashed_node_has_the_sum_of_its_rows_with_the_variance_of_one():
    table = np.random.default_rng(0).normal(size=(NUM_ROWS, 4)).astype(np.float32)
    subgraph = random_subgraph("job")
    plain = subgraph.nodes["skill"]
    nodes = with_rows(subgraph, (HASHED,)).nodes["skill"]
    rows = np.asarray(read_rows(HASHED, plain.node))
    assert (rows[:, 0] != rows[:, 1]).any()
    expected = [(table[a] + table[b]) / 2**0.5 for a, b in rows]
    np.testing.assert_allclose(look_up(jnp.asarray(table), nodes), expected, rtol=1e-5)
    np.testing.assert_array_equal(
        look_up(jnp.asarray(table), plain._replace(node=plain.node % NUM_ROWS)),
        table[plain.node % NUM_ROWS],
    )


def test_the_rows_of_a_batch_are_all_that_its_loss_reads():
    """Loss and gradient are those of the whole tables; padding and unread rows have none."""
    model, rng = model_of(), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes_of(model)
    )
    loss = make_loss(model, task_weights=WEIGHTS, positive_weight=POSITIVE)
    batch = one_task(batch_of(0))

    def gradient(params, batch):
        return jax.value_and_grad(lambda p: loss(p, {}, {}, batch, jax.random.key(1))[0])(params)

    @jax.jit
    def both(params, batch):
        part, rows = rows_read(model)(batch)
        tables, rest = trees.split(params, TABLES)
        taken = jax.tree.map(
            lambda table, which: table.at[which].get(mode="fill", fill_value=jnp.nan), tables, rows
        )
        return gradient(params, batch), gradient(trees.merge(rest, taken), part), rows

    (value, whole), (of_part, part), rows = both(params, batch)
    assert of_part == pytest.approx(float(value), rel=1e-6)
    (whole, rest), (part, other) = (trees.split(tree, TABLES) for tree in (whole, part))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), rest, other)
    assert len(jax.tree.leaves(rows)) == 4

    def check(whole, part, rows):
        num_rows, rows = len(whole), np.asarray(rows)
        real = rows[rows < num_rows]
        assert len(set(real.tolist())) == len(real)
        assert (np.diff(rows) >= 0).all()
        found = np.zeros_like(whole)
        found[real] = part[rows < num_rows]
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-6)
        unread = np.setdiff1d(np.arange(num_rows), real)
        assert not np.asarray(whole)[unread].any()

    jax.tree.map(check, whole, part, rows)
    for path in ("features_member/.*", "features_skill/.*", "match/signature_skill"):
        (table,) = jax.tree.leaves(trees.select(whole, path))
        assert np.abs(table).max() > 1e-3, path


@pytest.mark.parametrize("match", [True, False])
def test_rows_are_named_for_every_table(match):
    model = model_of(match=match)
    tables = trees.select(shapes_of(model), TABLES)
    assert len(trees.paths(tables)) == (4 if match else 2)
    rows = jax.eval_shape(rows_read(model), one_task(batch_of(0)))[1]
    assert jax.tree.structure(rows) == jax.tree.structure(tables)


def one_task(batch):
    """The first one, with padding among the skills."""
    pairs = batch.tasks["apply"]
    pairs = pairs._replace(sender=padded(pairs.sender), receiver=padded(pairs.receiver))
    return batch._replace(tasks={"apply": pairs}, mask=pairs.mask)


def padded(subgraph):
    """The last skills are padding, which points at a row that nobody else reads."""
    skills = subgraph.nodes["skill"]
    node, mask = skills.node.copy(), skills.mask.copy()
    node[node == 0] = 1
    mask[:, -3:], node[:, -3:] = False, 0
    hops = tuple(
        {
            key: table._replace(
                mask=table.mask
                & ((table.index < node.shape[1] - 3) | (not key.startswith("skill")))
            )
            for key, table in hop.items()
        }
        for hop in subgraph.hops
    )
    nodes = subgraph.nodes | {"skill": skills._replace(node=node, mask=mask)}
    return subgraph._replace(nodes=nodes, hops=hops)


def test_a_batch_reads_the_rows_of_its_real_nodes_each_once():
    batch = one_task(batch_of(0))
    model = model_of()
    model = model.clone(features=(*model.features[:2], FEATURES[2]))
    part, rows = jax.jit(rows_read(model))(batch)
    whole, part = (
        [getattr(each.tasks["apply"], role).nodes["skill"] for role in ("sender", "receiver")]
        for each in (batch, part)
    )
    real = np.concatenate([table.node[table.mask] for table in whole])
    expected = np.unique(real)
    assert len(expected) < len(real)
    assert 0 not in expected  # What padding points to.
    found = np.asarray(rows["features_skill"]["identity_embedding"])
    np.testing.assert_array_equal(found[: len(expected)], expected)
    assert (found[len(expected) :] == 12).all()
    for table, changed in zip(whole, part, strict=True):
        named = found[np.asarray(changed.identity)[..., 0]]
        np.testing.assert_array_equal(named, np.where(table.mask, table.node, 12))


def test_a_type_that_a_batch_has_no_node_of_is_no_problem():
    model = model_of()
    batch = one_task(batch_of(0))
    model = model.clone(features=(*model.features, NodeFeatures("place", 9, 0, (), 0)))
    _, rows = jax.jit(rows_read(model))(batch)
    np.testing.assert_array_equal(rows["features_place"]["identity_embedding"], [9])
    np.testing.assert_array_equal(rows["match"]["signature_place"], [9])


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        ({}, 300),
        ({"identity_rows": 200}, 200),
        ({"identity_rows": 400}, 300),
        ({"identity_update": "adam"}, 384),
        ({"identity_update": "adagrad", "identity_rows": 200}, 256),
    ],
)
def test_how_many_rows_a_type_has(config, rows):
    assert num_rows(FeatureConfig(**config), 300) == rows


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"identity_min_edges": 0}, "identity_min_edges 0 must be >= 1"),
        ({"identity_rows": 0}, "identity_rows 0 must be >= 1, or None"),
        ({"identity_rate": 0.0}, "identity_rate 0.0 must be > 0"),
        ({"identity_rate": 2.0}, "identity_rate 2.0 with identity_update=dense; give optimizer"),
    ],
)
def test_wrong_configs_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        FeatureConfig(**config)
