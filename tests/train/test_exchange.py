"""Devices that meet once a step, against loops over devices and batches."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import REPLICATED_RULES
from star_jax.train.exchange import ExchangeConfig
from star_jax.train.optimizers import OptimizerConfig, make_optimizer
from star_jax.train.rows import make_row_optimizer
from star_jax.train.state import create_state
from star_jax.train.step import make_step
from tests.train.regression import ROWS, WIDTH, Batch, frozen, params

DEVICES = 2
RATE = 0.1
ADAMW = make_optimizer(OptimizerConfig(clip_norm=0.5))
SGD = optax.identity()


def loss_fn(trainable, frozen, batch, key):
    """As in `regression`, without noise."""
    del key
    guess = (batch.x * frozen["scale"]) @ trainable["layer"]["kernel"] + trainable["layer"]["bias"]
    square = jnp.where(batch.mask, jnp.square(guess - batch.y), 0.0)
    return square.sum() / jnp.maximum(batch.mask.sum(), 1), {}


def batches(every, *, full=False):
    """Batches of one step; padding is uneven, unless it is asked for none."""
    rng = np.random.default_rng(every)
    x = rng.normal(size=(every, ROWS, WIDTH)).astype(np.float32)
    mask = np.ones((every, ROWS), bool) if full else rng.random((every, ROWS)) < 0.7
    return Batch(x, x.sum(axis=2) + rng.normal(size=(every, ROWS)).astype(np.float32), mask)


def begun(optimizer, devices=DEVICES, exchange=None):
    mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
    state = create_state(params(), optimizer, seed=0, mesh=mesh, rules=REPLICATED_RULES)
    return state, make_step(loss_fn, optimizer, state=state, mesh=mesh, exchange=exchange)


def after(optimizer, steps, devices=DEVICES, exchange=None):
    state, step = begun(optimizer, devices, exchange)
    metrics = {}
    for batch in steps:
        state, metrics = step(state, frozen(), step.place(batch), RATE)
    return jax.device_get((state.trainable, state.opt_state, metrics))


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize("every", [1, 3])
def test_aggregated_gradients_are_those_of_one_large_batch(every):
    steps = [batches(every), batches(every)]
    large = [jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), batch) for batch in steps]
    found = after(ADAMW, steps, exchange=ExchangeConfig(every=every))
    expected = after(ADAMW, large, devices=1)
    close(found, expected)


def meetings(exchange, accumulate):
    """All-reduces of a compiled step: in all, and inside of loops."""
    mesh = make_mesh(MeshConfig(data=DEVICES), jax.devices()[:DEVICES])
    state = create_state(params(), ADAMW, seed=0, mesh=mesh, rules=REPLICATED_RULES)
    step = make_step(
        loss_fn, ADAMW, state=state, mesh=mesh, accumulate=accumulate, exchange=exchange
    )
    with jax.set_mesh(mesh):
        program = step._update.lower(
            state=state, frozen=frozen(), batch=step.place(batches(8)), rate=jnp.float32(RATE)
        )
    text = program.compile().as_text()
    assert text is not None
    blocks = {block.split(" ")[0].lstrip("%"): block for block in text.split("\n\n")}
    found = {name: len(re.findall(r" all-reduce(?:-start)?\(", b)) for name, b in blocks.items()}
    bodies = re.findall(r"body=%?([\w.\-]+)", text)
    assert bodies
    return sum(found.values()), sum(found[name] for name in bodies)


def test_devices_meet_after_the_loop_over_batches_and_not_in_it():
    in_all, in_loop = meetings(ExchangeConfig(every=8), accumulate=1)
    assert in_all > in_loop == 0
    in_all, in_loop = meetings(None, accumulate=8)
    assert in_loop > 0  # What the aggregation is for.


def by_loop(optimizer, steps):
    """Local SGD written down: devices one after the other, batches one after the other."""
    gradient = jax.jit(jax.grad(lambda p, batch: loss_fn(p, frozen(), batch, None)[0]))
    trainable, opt_state = params(), optimizer.init(params())
    for batch in steps:
        ends = []
        for device in range(DEVICES):
            own, own_state = trainable, opt_state
            rows = slice(device * ROWS // DEVICES, (device + 1) * ROWS // DEVICES)
            for number in range(len(batch.mask)):
                one = Batch(*(array[number, rows] for array in batch))
                updates, own_state = optimizer.update(gradient(own, one), own_state, own)
                own = jax.tree.map(lambda p, u: p - RATE * u, own, updates)
            ends.append((own, own_state))
        trainable, opt_state = jax.tree.map(
            lambda *leaves: sum(leaves) / DEVICES if leaves[0].dtype == jnp.float32 else leaves[0],
            *ends,
        )
    return trainable, opt_state


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_local_sgd_averages_what_each_device_came_to(optimizer):
    steps = [batches(3), batches(3)]
    exchange = ExchangeConfig(every=3, of="parameters")
    *found, _ = after(optimizer, steps, exchange=exchange)
    close(tuple(found), by_loop(optimizer, steps))


def test_local_sgd_of_one_batch_is_ordinary_sgd_where_devices_have_as_many_rows():
    steps = [batches(1, full=True), batches(1, full=True)]
    found = after(SGD, steps, exchange=ExchangeConfig(every=1, of="parameters"))
    ordinary = after(SGD, [jax.tree.map(lambda a: a[0], batch) for batch in steps])
    close(found[0], ordinary[0])


def test_local_sgd_converges():
    rounds = [batch._replace(y=batch.x.sum(axis=2)) for batch in [batches(4)] * 40]
    trainable, _, metrics = after(SGD, rounds, exchange=ExchangeConfig(every=4, of="parameters"))
    np.testing.assert_allclose(trainable["layer"]["kernel"], 0.5, atol=1e-3)
    assert metrics["loss"] < 1e-4


def test_what_devices_cannot_do_apart_is_refused():
    for axis, config in (
        ("fsdp", MeshConfig(data=1, fsdp=2)),
        ("tensor", MeshConfig(data=1, tensor=2)),
    ):
        mesh = make_mesh(config)
        state = create_state(params(), SGD, seed=0, mesh=mesh, rules=REPLICATED_RULES)
        with pytest.raises(ValueError, match=rf"exchange with mesh\.{axis} 2, needed 1"):
            make_step(loss_fn, SGD, state=state, mesh=mesh, exchange=ExchangeConfig())
    by_rows = make_row_optimizer(
        OptimizerConfig(), "adam", rate=1.0, tables="none", read=lambda batch: (batch, {})
    )
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with pytest.raises(ValueError, match="exchange with an optimizer by rows"):
        make_step(loss_fn, by_rows, state=state, mesh=mesh, exchange=ExchangeConfig())
    with pytest.raises(ValueError, match="every 0 must be >= 1"):
        ExchangeConfig(every=0)
