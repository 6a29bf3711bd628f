"""What training changes: the trainable parameters, their optimizer, the step and the key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from star_jax.parallel.rules import Rules, put, replicated, shardings
from star_jax.shapes import PyTree

_OF_TRAINING = 2**31 - 1


class TrainState(NamedTuple):
    """All that a checkpoint holds of a model; frozen parameters are not in here."""

    step: Int[Array, ""]  # Optimizer updates done.
    trainable: PyTree
    opt_state: PyTree
    rng: Key[Array, ""]  # Constant; the key of a step is folded from it.
    statistics: PyTree = ()  # Running values that no gradient changes (batch normalisation).


def create_state(
    trainable: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    mesh: Mesh,
    rules: Rules,
    statistics: PyTree = (),
) -> TrainState:
    """The state before the first step, placed on the mesh.

    Args:
      trainable: Parameters that gradients change; the optimizer holds state for these alone.
      optimizer: As the step uses it.
      seed: Of dropout and whatever else the loss draws.
      mesh: The devices.
      rules: Parameter path -> sharding; the optimizer's arrays lie where their parameters lie.
      statistics: Running values, copied to every device.
    """
    where = shardings(trainable, mesh, rules)
    trainable = put(trainable, where)
    slots = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, trainable),
        where,
        transform_non_params=lambda _: replicated(mesh),
    )
    opt_state = jax.jit(optimizer.init, out_shardings=slots)(trainable)
    # Not the key that parameters are drawn from: no step folds in so large a number.
    key = jax.random.fold_in(jax.random.key(seed), _OF_TRAINING)
    rest = put((jnp.zeros((), jnp.int32), key, statistics), replicated(mesh))
    return TrainState(rest[0], trainable, opt_state, rest[1], rest[2])


def abstract(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a state: what restoring needs."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
