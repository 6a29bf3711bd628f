"""Gradients and updates of a batch on one device or all: what a step is made of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, Num

from star_jax.shapes import PyTree
from star_jax.train.state import Optimizer, TrainState

Metrics = Mapping[str, Num[Array, ""]]

StatefulLossFn = Callable[
    [PyTree, PyTree, PyTree, Any, Key[Array, ""]],
    tuple[Float[Array, ""], tuple[Metrics, PyTree]],
]
"""(trainable, statistics, frozen, batch, key) -> (loss, (metrics, new statistics))."""


@runtime_checkable
class Masked(Protocol):
    """Any batch: a NamedTuple of arrays, of which `mask` says which rows are real."""

    @property
    def mask(self) -> Any:
        """True for real rows; with accumulation one row of it per microbatch."""


class Advanced(NamedTuple):
    """What a batch changes."""

    trainable: PyTree
    opt_state: PyTree
    statistics: PyTree
    metrics: Metrics


Advance = Callable[[TrainState, PyTree, Any, Key[Array, ""], Float[Array, ""]], Advanced]
"""(state, frozen, batch, key, learning rate) -> what one step makes of the state."""


def updating(loss_fn: StatefulLossFn, optimizer: Optimizer, accumulate: int) -> Advance:
    """One update by the gradient of the batch, or of all its microbatches."""
    gradient = one_gradient if accumulate == 1 else mean_gradient

    def advance(
        state: TrainState, frozen: PyTree, batch: Any, key: Key[Array, ""], rate: Float[Array, ""]
    ) -> Advanced:
        grads, metrics, statistics = gradient(loss_fn, state, frozen, batch, key)
        return updated(optimizer, state, grads, rate, statistics, metrics)

    return advance


def updated(
    optimizer: Optimizer,
    state: TrainState,
    grads: PyTree,
    rate: Float[Array, ""],
    statistics: PyTree,
    metrics: Metrics,
) -> Advanced:
    """The state after an update by a gradient; `gradient_norm` is added to the metrics."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    updates = jax.tree.map(lambda update: -rate * update, updates)
    trainable: Any = optax.apply_updates(state.trainable, updates)
    norm = optax.tree.norm(grads)
    return Advanced(trainable, opt_state, statistics, {**metrics, "gradient_norm": norm})


def one_gradient(
    loss_fn: StatefulLossFn, state: TrainState, frozen: PyTree, batch: Any, key: Key[Array, ""]
) -> tuple[PyTree, Metrics, PyTree]:
    """Gradient, metrics with `loss` among them, and new statistics of one batch."""
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (metrics, statistics)), grads = value_and_grad(
        state.trainable, state.statistics, frozen, batch, key
    )
    return grads, dict(metrics) | {"loss": loss}, statistics


def mean_gradient(
    loss_fn: StatefulLossFn,
    state: TrainState,
    frozen: PyTree,
    batch: Masked,
    key: Key[Array, ""],
    axes: tuple[str, ...] = (),
) -> tuple[PyTree, Metrics, PyTree]:
    """One microbatch after the other; averages weighted by real rows, summed in float32.

    Within `shard_map` over `axes`, the part of the average that this device's rows make.
    """
    rows = batch.mask.reshape(batch.mask.shape[0], -1).sum(axis=1).astype(jnp.float32)
    total = jax.lax.psum(rows.sum(), axes) if axes else rows.sum()
    weights = rows / jnp.maximum(total, 1.0)

    def add(carry: tuple, slice_: tuple) -> tuple[tuple, None]:
        sums, statistics = carry
        index, weight, microbatch = slice_
        micro_key = jax.random.fold_in(key, index)
        grads, metrics, statistics = one_gradient(
            loss_fn, state._replace(statistics=statistics), frozen, microbatch, micro_key
        )
        sums = jax.tree.map(
            lambda total, x: total + weight * x.astype(jnp.float32), sums, (grads, metrics)
        )
        return (sums, statistics), None

    first = jax.tree.map(lambda leaf: leaf[0], batch)
    shapes = jax.eval_shape(lambda: one_gradient(loss_fn, state, frozen, first, key)[:2])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
    indices = jnp.arange(weights.shape[0])
    ((grads, metrics), statistics), _ = jax.lax.scan(
        add, (zeros, state.statistics), (indices, weights, batch)
    )
    return grads, metrics, statistics
