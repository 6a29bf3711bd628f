"""A state that was saved on one mesh, on others: the same bits, and the same training after it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import Rule, Split
from star_jax.train.checkpoints import Best, Checkpointer
from star_jax.train.state import create_state
from star_jax.train.step import make_step
from tests.train import lookups
from tests.train.test_checkpoints import equal

SAVED = (4, 2, 1)  # Devices along `data`, `fsdp` and `tensor`.
OTHERS = [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1), (8, 1, 1), (1, 2, 4), (2, 1, 2)]
WIDE = 1 << 13  # Times the width of a row: enough to be split over `fsdp`.

RULES = (Rule("wide/kernel", Split(-1, -2)), *lookups.RULES)


def loss_fn(trainable, statistics, frozen, batch, key):
    """As that of the lookups, through a wide layer; a running mean is what no gradient changes."""
    vectors = trainable["table"]["vectors"][batch.row]
    noise = 0.01 * jax.random.normal(key, ())  # So that the key matters.
    guess = (jnp.tanh(vectors @ trainable["wide"]["kernel"])).mean(axis=1) + noise
    square = jnp.where(batch.mask, jnp.square(guess - batch.y), 0.0)
    mean = 0.9 * statistics["mean"] + 0.1 * vectors.mean(axis=0)
    return square.sum() / batch.mask.sum(), ({}, {"mean": mean})


def begin(shape):
    """State and step on a mesh, before the first step."""
    data, fsdp, tensor = shape
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    kernel = np.random.default_rng(1).normal(size=(lookups.WIDTH, WIDE)).astype(np.float32)
    params: Any = {"table": lookups.params()["table"], "wide": {"kernel": kernel}}
    optimizer = lookups.optimizer_of("adam")
    state = create_state(
        params,
        optimizer,
        seed=1,
        mesh=mesh,
        rules=RULES,
        statistics={"mean": jnp.zeros(lookups.WIDTH)},
    )
    return state, make_step(loss_fn, optimizer, state=state, mesh=mesh, stateful=True)


def go_on(state, step, first, last):
    for number in range(first, last):
        state, _ = step(state, {}, step.place(lookups.batch_of(number)), 0.1)
    return state


def host(state):
    return jax.tree.map(np.asarray, state._replace(rng=jax.random.key_data(state.rng)))


def checkpointer(folder):
    return Checkpointer(folder, config=lookups.CONFIG, frozen_digest="")


def restored(folder, like):
    found = checkpointer(folder).restore_last(like)
    assert found is not None
    leaves = [jax.tree.leaves(each._replace(rng=())) for each in (found.state, like)]
    for leaf, expected in zip(*leaves, strict=True):
        assert leaf.sharding == expected.sharding
    return found.state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the state after three steps, that state, and the one after three more."""
    folder = tmp_path_factory.mktemp("saved")
    state, step = begin(SAVED)
    split = [leaf for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
    assert len(split) == 7  # Table and kernel, the moments of both, and the rows' counts.
    assert state.trainable["wide"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp")
    state = go_on(state, step, 0, 3)
    checkpointer(folder).save(state, {"position": 3}, Best(3, 0.5))
    before = host(state)
    assert before.statistics["mean"].all()
    return folder, before, host(go_on(state, step, 3, 6))


def close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )


@pytest.mark.parametrize("shape", OTHERS, ids=str)
def test_another_mesh_has_the_same_bits_trains_on_and_gives_them_back(saved, tmp_path, shape):
    folder, before, after = saved
    state, step = begin(shape)
    spec = state.trainable["wide"]["kernel"].sharding.spec
    assert ("tensor" in spec, "fsdp" in spec) == (shape[2] > 1, shape[1] > 1)
    state = restored(folder, state)
    equal(host(state), before)
    checkpointer(tmp_path / "unchanged").save(state, {}, None)
    equal(host(restored(tmp_path / "unchanged", begin(SAVED)[0])), before)
    state = go_on(state, step, 3, 5)
    checkpointer(tmp_path / "trained").save(state, {}, None)
    moved = host(state)
    state, step = begin(SAVED)
    state = restored(tmp_path / "trained", state)
    equal(host(state), moved)
    close(host(go_on(state, step, 5, 6)), after)
