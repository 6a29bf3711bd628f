"""Devices that compute apart and meet once a step: gradient aggregation, local SGD."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Key

from star_jax.parallel.mesh import FSDP, ROW_AXES, TENSOR
from star_jax.shapes import PyTree
from star_jax.train.gradients import (
    Advance,
    Advanced,
    Metrics,
    StatefulLossFn,
    mean_gradient,
    one_gradient,
    updated,
)
from star_jax.train.rows import RowOptimizer
from star_jax.train.state import Optimizer, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExchangeConfig:
    """What devices do between two meetings.

    Attributes:
      every: Batches of a step, one after the other; the devices meet after the last one.
      of: What they then average. "gradients": those of all batches, summed on each device first,
        for one update (local gradient aggregation, LiGNN). "parameters": each device updates a
        copy of its own after every batch, and these are averaged, the optimizer's state with them
        (local SGD, Stich 2019, arXiv 1805.09767).
    """

    every: int = 4
    of: Literal["gradients", "parameters"] = "gradients"

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every {self.every} must be >= 1")


def exchanging(
    config: ExchangeConfig, loss_fn: StatefulLossFn, optimizer: Optimizer, mesh: Mesh
) -> Advance:
    """A step of several batches in which devices meet once.

    Every device has a copy of all parameters, and statistics and dropout of its own. Its loss is a
    mean over its own rows. With "gradients" it counts in proportion to its real rows, so that the
    average is that over the whole batch where the loss is a plain mean.

    Args:
      config: When they meet, and what for.
      loss_fn: Of a batch, whose rows are those of one device.
      optimizer: Not by rows.
      mesh: Without a split of parameters.

    Raises:
      ValueError: The mesh splits parameters, or the optimizer works by rows.
    """
    for axis in (FSDP, TENSOR):
        if mesh.shape[axis] != 1:
            raise ValueError(
                f"exchange with mesh.{axis} {mesh.shape[axis]}, needed 1: each device computes "
                "with all parameters"
            )
    if isinstance(optimizer, RowOptimizer):
        raise ValueError("exchange with an optimizer by rows, needed one of whole parameters")

    def on_one(
        state: TrainState, frozen: PyTree, batch: Any, key: Key[Array, ""], rate: Float[Array, ""]
    ) -> Advanced:
        key = jax.random.fold_in(key, jax.lax.axis_index(ROW_AXES))
        if config.of == "parameters":
            return _averaged(_updates(loss_fn, optimizer, state, frozen, batch, key, rate))
        grads, metrics, statistics = mean_gradient(loss_fn, state, frozen, batch, key, ROW_AXES)
        grads, metrics = jax.lax.psum((grads, metrics), ROW_AXES)
        statistics = jax.lax.pmean(statistics, ROW_AXES)
        return updated(optimizer, state, grads, rate, statistics, metrics)

    copied = PartitionSpec()
    return jax.shard_map(
        on_one,
        mesh=mesh,
        in_specs=(copied, copied, PartitionSpec(None, ROW_AXES), copied, copied),
        out_specs=copied,
        check_vma=False,  # Else every gradient of a copied parameter would meet by itself.
    )


def _updates(
    loss_fn: StatefulLossFn,
    optimizer: Optimizer,
    state: TrainState,
    frozen: PyTree,
    batch: Any,
    key: Key[Array, ""],
    rate: Float[Array, ""],
) -> Advanced:
    """An update after every batch; metrics are means over them."""

    def advance(state: TrainState, slice_: tuple) -> tuple[TrainState, Metrics]:
        index, one = slice_
        grads, metrics, statistics = one_gradient(
            loss_fn, state, frozen, one, jax.random.fold_in(key, index)
        )
        new = updated(optimizer, state, grads, rate, statistics, metrics)
        state = state._replace(
            trainable=new.trainable, opt_state=new.opt_state, statistics=new.statistics
        )
        return state, new.metrics

    every = batch.mask.shape[0]
    state, metrics = jax.lax.scan(advance, state, (jnp.arange(every), batch))
    means = jax.tree.map(lambda values: jnp.mean(values.astype(jnp.float32), axis=0), metrics)
    return Advanced(state.trainable, state.opt_state, state.statistics, means)


def _averaged(advanced: Advanced) -> Advanced:
    """The mean over devices; what is not float counts updates, and is the same on all."""

    def mean(leaf: Array) -> Array:
        return jax.lax.pmean(leaf, ROW_AXES) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(mean, advanced)
