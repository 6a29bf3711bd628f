"""Updates by rows against dense ones that loop over all rows of the table."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import PartitionSpec

from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.train import state as state_module
from star_jax.train.checkpoints import Checkpointer
from star_jax.train.rows import row_adam
from star_jax.train.state import abstract, shapes_of_state
from tests.train import lookups, regression

RULES = ["adagrad", "adam"]
CONFIG, RATE = lookups.CONFIG, 0.1


class Moments:
    """Adam of one array."""

    def __init__(self, like):
        self.count, self.mean, self.square = 0, np.zeros_like(like), np.zeros_like(like)

    def update(self, g):
        self.count += 1
        self.mean = CONFIG.b1 * self.mean + (1 - CONFIG.b1) * g
        self.square = CONFIG.b2 * self.square + (1 - CONFIG.b2) * g**2
        m = self.mean / (1 - CONFIG.b1**self.count)
        return m / (np.sqrt(self.square / (1 - CONFIG.b2**self.count)) + CONFIG.eps)


def dense_steps(rule, num_steps=5):
    """Head, table and slots in float64, by the gradient of the whole table and row by row."""
    kernel, table = np.ones(lookups.WIDTH), lookups.params()["table"]["vectors"].astype(np.float64)
    of_kernel, of_rows = Moments(kernel), [Moments(row) for row in table]
    squares = np.zeros(len(table))
    for number in range(num_steps):
        batch = lookups.batch_of(number)
        error = np.where(batch.mask, 2 * (table[batch.row] @ kernel - batch.y), 0)
        error /= batch.mask.sum()
        grads = np.zeros_like(table)
        np.add.at(grads, batch.row, error[:, None] * kernel)
        grad = error @ table[batch.row]
        factor = CONFIG.clip_norm / np.sqrt((grads**2).sum() + (grad**2).sum())
        assert factor < 1
        decay = CONFIG.weight_decay * kernel
        kernel = kernel - RATE * (of_kernel.update(factor * grad) + decay)
        for row in set(batch.row[batch.mask].tolist()):
            g = factor * grads[row]
            if rule == "adagrad":
                squares[row] += (g**2).mean()
                update = g / (np.sqrt(squares[row]) + CONFIG.eps)
            else:
                update = of_rows[row].update(g)
            table[row] -= lookups.RATE * RATE * update
    names = ("count", "mean", "square")
    moments = [np.stack([getattr(row, name) for row in of_rows]) for name in names]
    return kernel, table, [squares] if rule == "adagrad" else moments


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_rule_on_the_whole_table(rule):
    batches = [lookups.batch_of(number) for number in range(5)]
    read = [set(batch.row[batch.mask].tolist()) for batch in batches]
    assert all(len(rows) < batch.mask.sum() for rows, batch in zip(read, batches, strict=True))
    assert set.union(*read) != set.intersection(*read)  # Some wait for a later batch.
    kernel, table, kept = dense_steps(rule)
    state = lookups.train(rule, regression.one_device())
    np.testing.assert_allclose(state.trainable["head"]["kernel"], kernel, rtol=1e-4)
    found = state.trainable["table"]["vectors"]
    np.testing.assert_allclose(found, table, rtol=1e-4, atol=1e-5)
    for slot, expected in zip(state.opt_state.slots, kept, strict=True):
        np.testing.assert_allclose(slot["table"]["vectors"], expected, rtol=1e-4, atol=1e-6)
    never = sorted(set(range(len(table))) - set.union(*read))  # Row 0, that of padding, too.
    assert 0 in never
    np.testing.assert_array_equal(found[never], lookups.params()["table"]["vectors"][never])
    assert not any(slot["table"]["vectors"][never].any() for slot in state.opt_state.slots)


def test_a_row_of_every_batch_is_updated_by_adam():
    rng = np.random.default_rng(0)
    table = {"a": jnp.zeros((3, 2))}
    lazy, adam = row_adam(0.9, 0.99, 1e-6, 2.0), optax.scale_by_adam(0.9, 0.99, 1e-6)
    slots, state = lazy.init(table), adam.init(table)
    for _ in range(4):
        grads = {"a": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}
        found: Any
        expected: Any
        found, slots = lazy.update(grads, slots, table)
        expected, state = adam.update(grads, state)
        np.testing.assert_allclose(found["a"], 2.0 * expected["a"], rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_many_devices_compute_what_one_computes(rule):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    one, many = (lookups.train(rule, each) for each in (regression.one_device(), mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)
    state, _ = lookups.begin(rule, mesh)
    tables = [state.trainable["table"], *state.opt_state.slots]
    assert {leaf.sharding.spec for leaf in jax.tree.leaves(tables)} == {PartitionSpec("fsdp")}


@pytest.mark.parametrize("rule", RULES)
def test_a_step_costs_the_same_however_many_rows_there_are(rule):
    """Buffers grow; no arithmetic does, and no scratch memory: they are changed in place."""
    mesh, costs = regression.one_device(), []
    for num_rows in (1 << 10, 1 << 15):
        state, step = lookups.begin(rule, mesh, num_rows)
        batch = step.place(lookups.batch_of(0))
        with jax.set_mesh(mesh):
            lowered = step._update.lower(
                state=state, frozen={}, batch=batch, rate=jnp.float32(RATE)
            )
        tables = jax.tree.leaves([state.trainable["table"], *state.opt_state.slots])
        costs.append((lowered.compile(), sum(leaf.nbytes for leaf in tables)))
    (small, before), (large, after) = costs
    grown = {
        name: large.cost_analysis()[name] - small.cost_analysis()[name]
        for name in ("flops", "bytes accessed")
    }
    assert grown["flops"] == 0
    # Whole buffers are counted wherever some of their rows are read or written.
    assert grown["bytes accessed"] <= 3 * (after - before)
    memory = [compiled.memory_analysis() for compiled in (small, large)]
    assert memory[1].temp_size_in_bytes == memory[0].temp_size_in_bytes
    assert memory[1].alias_size_in_bytes - memory[0].alias_size_in_bytes == after - before


def test_shapes_of_a_state_are_those_of_the_state_that_is_made():
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:4])
    shapes = shapes_of_state(
        jax.eval_shape(lookups.params), lookups.optimizer_of("adam"), mesh=mesh, rules=lookups.RULES
    )
    assert abstract(shapes) == abstract(lookups.begin("adam", mesh)[0])


def test_a_checkpoint_holds_the_rows_and_their_slots(tmp_path):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])
    checkpointer = Checkpointer(tmp_path, config=CONFIG, frozen_digest="")
    state, step = lookups.begin("adam", mesh)
    state, _ = step(state, {}, step.place(lookups.batch_of(0)), RATE)
    checkpointer.save(state, {}, None)
    restored = checkpointer.restore_last(lookups.begin("adam", mesh)[0])
    assert restored is not None
    last = lookups.batch_of(1)
    after = [step(each, {}, step.place(last), RATE)[0] for each in (restored.state, state)]
    for a, b in zip(*(jax.tree.leaves(each._replace(rng=())) for each in after), strict=True):
        assert a.sharding == b.sharding
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rule", RULES)
def test_tables_keep_the_layout_they_were_made_in(rule, tmp_path, monkeypatch):
    """By columns, since rows are what CPUs take anyway."""
    expected = lookups.train(rule, regression.one_device())
    columns = Layout((1, 0))
    monkeypatch.setattr(state_module, "row_major", lambda where: Format(columns, where))

    def laid_by_columns(state):
        tables = [state.trainable["table"], *(slot["table"] for slot in state.opt_state.slots)]
        tables = [table for table in jax.tree.leaves(tables) if table.ndim == 2]
        assert len(tables) == {"adagrad": 1, "adam": 3}[rule]
        return {table.format.layout.major_to_minor for table in tables} == {(1, 0)}

    state, step = lookups.begin(rule, regression.one_device())
    assert laid_by_columns(state)
    checkpointer = Checkpointer(tmp_path, config=CONFIG, frozen_digest="")
    for number in range(5):
        state, _ = step(state, {}, step.place(lookups.batch_of(number)), 0.1)
        assert laid_by_columns(state)
        if number == 2:
            checkpointer.save(state, {}, None)
            restored = checkpointer.restore_last(state)
            assert restored is not None
            state = restored.state
            assert laid_by_columns(state)
    found = jax.tree.leaves(state._replace(rng=()))
    for leaf, other in zip(found, jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, other)
