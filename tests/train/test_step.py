import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from star_jax import trees
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import FSDP_RULES, Rule
from star_jax.train.optimizers import OptimizerConfig, make_optimizer
from star_jax.train.state import create_state
from star_jax.train.step import make_step
from tests.train import regression

CONFIG = OptimizerConfig(
    learning_rate=0.1, weight_decay=0.0, rate_multipliers=((r".*/kernel", 1.0),)
)
SPLIT_RULES = (Rule("layer/kernel", PartitionSpec("fsdp")), Rule(".*", PartitionSpec()))


def three_steps(mesh, rules=FSDP_RULES, accumulate=1, reshape=lambda a: a, loss=regression.loss_fn):
    optimizer = make_optimizer(CONFIG)
    state = create_state(regression.params(), optimizer, seed=1, mesh=mesh, rules=rules)
    step = make_step(loss, optimizer, state=state, mesh=mesh, accumulate=accumulate)
    batches, metrics = regression.Batches(), {}
    for _ in range(3):
        batch = jax.tree.map(reshape, next(batches))
        state, metrics = step(state, regression.frozen(), step.place(batch), 0.1)
    return state, metrics


def close(a, b, rtol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


def without_noise(trainable, frozen, batch, key):
    return regression.loss_fn(trainable, frozen, batch, jax.random.key(0))


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4), (1, 2)])
def test_many_devices_compute_what_one_computes(data, fsdp):
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp))
    one, many = three_steps(regression.one_device()), three_steps(mesh, SPLIT_RULES)
    kernel = many[0].trainable["layer"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec("fsdp")
    slot = many[0].opt_state[1].mu["layer"]["kernel"]
    assert slot.sharding == kernel.sharding
    close(one[0].trainable, many[0].trainable, rtol=1e-5)
    np.testing.assert_allclose(one[1]["loss"], many[1]["loss"], rtol=1e-5)


@pytest.mark.parametrize("parts", [2, 4])  # Masks differ, so the parts weigh differently.
def test_microbatches_add_up_to_the_batch(parts):
    whole = three_steps(regression.one_device(), loss=without_noise)
    split = three_steps(
        regression.one_device(),
        accumulate=parts,
        reshape=lambda a: a.reshape(parts, -1, *a.shape[1:]),
        loss=without_noise,
    )
    close(whole[0].trainable, split[0].trainable, rtol=1e-4)
    np.testing.assert_allclose(whole[1]["loss"], split[1]["loss"], rtol=1e-5)


def test_keys_of_steps_are_not_those_of_parameters():
    mesh = regression.one_device()
    state = create_state(
        regression.params(), make_optimizer(CONFIG), seed=1, mesh=mesh, rules=FSDP_RULES
    )
    drawn_from = {
        tuple(key) for key in jax.random.key_data(jax.random.split(jax.random.key(1), 8)).tolist()
    }
    steps = {
        tuple(jax.random.key_data(jax.random.fold_in(state.rng, i)).tolist()) for i in range(8)
    }
    assert not drawn_from & steps


def test_step_is_adam_on_the_mean_gradient():
    """The first update of Adam is the sign of the gradient times the rate."""
    optimizer = make_optimizer(CONFIG)
    mesh = regression.one_device()
    state = create_state(regression.params(), optimizer, seed=1, mesh=mesh, rules=FSDP_RULES)
    batch = next(regression.Batches())
    key = jax.random.fold_in(state.rng, 0)
    grads = jax.grad(lambda p: regression.loss_fn(p, regression.frozen(), batch, key)[0])(
        state.trainable
    )
    step = make_step(regression.loss_fn, optimizer, state=state, mesh=mesh)
    state, metrics = step(state, regression.frozen(), step.place(batch), 0.1)
    np.testing.assert_allclose(
        state.trainable["layer"]["kernel"], -0.1 * np.sign(grads["layer"]["kernel"]), rtol=1e-4
    )
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    assert int(state.step) == 1


def test_frozen_parameters_cost_no_optimizer_byte():
    optimizer = make_optimizer(CONFIG)
    state = create_state(
        regression.params(), optimizer, seed=1, mesh=regression.one_device(), rules=FSDP_RULES
    )
    leaves = [
        leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim or leaf.dtype != "int32"
    ]
    assert sum(leaf.nbytes for leaf in leaves) == 2 * trees.size_bytes(regression.params())


def test_statistics_change_without_a_gradient():
    def loss(trainable, statistics, frozen, batch, key):
        value, metrics = regression.loss_fn(trainable, frozen, batch, key)
        return value, (metrics, {"mean": 0.5 * statistics["mean"] + 0.5 * batch.x.mean()})

    optimizer, mesh = make_optimizer(CONFIG), regression.one_device()
    for accumulate in (1, 2):
        state = create_state(
            regression.params(),
            optimizer,
            seed=1,
            mesh=mesh,
            rules=FSDP_RULES,
            statistics={"mean": jnp.zeros(())},
        )
        step = make_step(
            loss, optimizer, state=state, mesh=mesh, accumulate=accumulate, stateful=True
        )
        batch = next(regression.Batches())
        parts = np.split(batch.x, accumulate)
        value = 0.0
        for part in parts:
            value = 0.5 * value + 0.5 * part.mean()
        if accumulate > 1:
            batch = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), batch)
        state, _ = step(state, regression.frozen(), step.place(batch), 0.1)
        np.testing.assert_allclose(state.statistics["mean"], value, rtol=1e-4)


def test_rows_must_fill_the_devices():
    optimizer = make_optimizer(CONFIG)
    mesh = make_mesh(MeshConfig(data=3))
    state = create_state(regression.params(), optimizer, seed=1, mesh=mesh, rules=FSDP_RULES)
    step = make_step(regression.loss_fn, optimizer, state=state, mesh=mesh)
    with pytest.raises(ValueError, match="x has 16 rows, needed a multiple of the 3 parts"):
        step.place(next(regression.Batches()))
