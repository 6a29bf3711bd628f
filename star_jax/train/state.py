"""What training changes: the trainable parameters, their optimizer, the step and the key."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int, Key

from star_jax import trees
from star_jax.parallel.rules import ROWS, Rules, placed, put, replicated, row_major, shardings
from star_jax.shapes import PyTree
from star_jax.train.rows import RowOptimizer, RowState

Optimizer: TypeAlias = optax.GradientTransformation | RowOptimizer

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
    optimizer: Optimizer,
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
    where = _shardings(optimizer, trainable, mesh, rules)
    trainable = put(trainable, where)
    slots = _slot_shardings(optimizer, trainable, where, mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=slots)(trainable)
    # Not the key that parameters are drawn from: no step folds in so large a number.
    key = jax.random.fold_in(jax.random.key(seed), _OF_TRAINING)
    rest = put((jnp.zeros((), jnp.int32), key, statistics), replicated(mesh))
    return TrainState(rest[0], trainable, opt_state, rest[1], rest[2])


def shapes_of_state(
    trainable: PyTree,
    optimizer: Optimizer,
    *,
    mesh: Mesh,
    rules: Rules,
    statistics: PyTree = (),
) -> TrainState:
    """As `create_state`, of shapes and with nothing placed: what a step can be compiled for."""
    where = _shardings(optimizer, trainable, mesh, rules)
    slots = _slot_shardings(optimizer, trainable, where, mesh)
    step, key = jax.eval_shape(lambda: (jnp.zeros((), jnp.int32), jax.random.key(0)))
    state = TrainState(step, trainable, jax.eval_shape(optimizer.init, trainable), key, statistics)
    everywhere = replicated(mesh)
    lies = state._replace(
        step=everywhere, trainable=where, opt_state=slots, rng=everywhere, statistics=everywhere
    )
    return placed(state, jax.tree.broadcast(lies, state))


def _shardings(optimizer: Optimizer, params: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    where = shardings(params, mesh, rules)
    if not isinstance(optimizer, RowOptimizer):
        return where
    tables, rest = trees.split(where, optimizer.tables)
    return trees.merge(rest, jax.tree.map(row_major, tables))


def _slot_shardings(optimizer: Optimizer, params: PyTree, where: PyTree, mesh: Mesh) -> PyTree:
    if isinstance(optimizer, RowOptimizer):
        tables, rest = trees.split(params, optimizer.tables)
        rows = NamedSharding(mesh, ROWS)
        slots = jax.tree.map(
            lambda slot: row_major(rows) if slot.ndim == 2 else rows,
            jax.eval_shape(optimizer.rule.init, tables),
        )
        of_rest = trees.split(where, optimizer.tables)[1]
        return RowState(_slot_shardings(optimizer.rest, rest, of_rest, mesh), slots)
    return optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        where,
        transform_non_params=lambda _: replicated(mesh),
    )


def abstract(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a state: what restoring needs."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
