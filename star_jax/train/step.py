"""One optimizer update, compiled: gradients of all microbatches, then AdamW."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from star_jax.parallel.rules import batch_shardings, lies, put, put_own, replicated
from star_jax.shapes import PyTree
from star_jax.train.exchange import ExchangeConfig, exchanging
from star_jax.train.gradients import Advance, Masked, Metrics, StatefulLossFn, updating
from star_jax.train.rows import RowOptimizer
from star_jax.train.state import Optimizer, TrainState

LossFn = Callable[[PyTree, PyTree, Any, Key[Array, ""]], tuple[Float[Array, ""], Metrics]]
"""(trainable, frozen, batch, key) -> (mean loss over the rows of the mask, metrics)."""

Prepare = Callable[[PyTree, Any], tuple[Any, Metrics]]
"""(frozen, placed batch) -> (what the loss and the optimizer read, metrics)."""

RowAxes = Callable[[Any], PyTree]
"""Batch -> axis of the rows: one for all arrays, or a tree of them."""


class Step:
    """A compiled update for one mesh. `place` a host batch, then call."""

    def __init__(
        self,
        advance: Advance,
        optimizer: Optimizer,
        *,
        state: TrainState,
        mesh: Mesh,
        row_axes: RowAxes,
        prepare: Prepare | None,
        own_rows: bool,
    ) -> None:
        self._mesh = mesh
        self._own_rows = own_rows
        self._row_axes = row_axes
        where = jax.tree.map(lies, state)

        def update(
            state: TrainState, frozen: PyTree, batch: Masked, rate: Float[Array, ""]
        ) -> tuple[TrainState, Metrics]:
            key = jax.random.fold_in(state.rng, state.step)
            figures: Metrics = {}
            if prepare is not None:
                batch, figures = prepare(frozen, batch)
            part, rows = state, None
            if isinstance(optimizer, RowOptimizer):  # On the rows that the batch reads.
                taken = optimizer.take(batch, state.trainable, state.opt_state)
                batch, rows = taken.batch, taken.rows
                part = state._replace(trainable=taken.trainable, opt_state=taken.opt_state)
            advanced = advance(part, frozen, batch, key, rate)
            changed: Any = (advanced.trainable, advanced.opt_state)
            if isinstance(optimizer, RowOptimizer):
                changed = optimizer.put(rows, changed, (state.trainable, state.opt_state))
            return state._replace(
                step=state.step + 1,
                trainable=changed[0],
                opt_state=changed[1],
                statistics=advanced.statistics,
            ), {**advanced.metrics, **figures}

        self._update = jax.jit(
            update, out_shardings=(where, replicated(mesh)), donate_argnames="state"
        )

    def place(self, batch: PyTree) -> PyTree:
        """Host batch to the devices: rows split over the mesh, microbatches and chunks not."""
        if self._own_rows:
            return put_own(batch, self._mesh, axis=self._row_axes(batch))
        return put(batch, batch_shardings(batch, self._mesh, axis=self._row_axes(batch)))

    def __call__(
        self, state: TrainState, frozen: PyTree, batch: Masked, rate: float
    ) -> tuple[TrainState, Metrics]:
        """Updates once.

        Args:
          state: Given away: its buffers are used again, so it must not be read afterwards.
          frozen: Parameters that the loss reads and nothing changes.
          batch: From `place`; with accumulation every array has a leading axis of microbatches.
          rate: Learning rate of this step.

        Returns:
          The new state, and the metrics of the loss with `loss` and `gradient_norm` added.
        """
        with jax.set_mesh(self._mesh):  # Kernels that XLA cannot split follow it.
            return self._update(state=state, frozen=frozen, batch=batch, rate=jnp.float32(rate))

    def lower(self, state: TrainState, frozen: PyTree, batch: Masked) -> jax.stages.Lowered:
        """The update before it is compiled; shapes with shardings do for arrays."""
        with jax.set_mesh(self._mesh):
            rate = jax.ShapeDtypeStruct((), jnp.float32)
            return self._update.lower(state=state, frozen=frozen, batch=batch, rate=rate)


def make_step(
    loss_fn: LossFn | StatefulLossFn,
    optimizer: Optimizer,
    *,
    state: TrainState,
    mesh: Mesh,
    accumulate: int = 1,
    row_axes: RowAxes | None = None,
    prepare: Prepare | None = None,
    stateful: bool = False,
    exchange: ExchangeConfig | None = None,
    own_rows: bool = False,
) -> Step:
    """Compiles an update whose result lies where `state` lies.

    Args:
      loss_fn: Its loss is a mean over the rows of `batch.mask`.
      optimizer: From `make_optimizer` or `make_row_optimizer`: the learning rate is multiplied
        in here.
      state: Placed on the mesh; says how the results are sharded.
      mesh: The devices.
      accumulate: Microbatches per update. Their gradients are averaged with the number of real
        rows as weights; their losses see only their own rows.
      row_axes: Batch -> which axis of its arrays counts rows; None: the first one that does not
        count microbatches.
      prepare: What is done first with the batch, inside the program.
      stateful: The loss is a `StatefulLossFn` and `state.statistics` are its running values.
      exchange: Given, devices compute apart and meet once a step, which has `exchange.every`
        batches stacked as microbatches are; `accumulate` stays 1.
      own_rows: Host batches have the rows of `own_parts` alone, where there are several processes.
    """
    loss: Any = loss_fn if stateful else _without_statistics(loss_fn)  # pyright: ignore[reportArgumentType] # as `stateful` says
    axis = 0 if accumulate == 1 and exchange is None else 1
    if exchange is None:
        advance = updating(loss, optimizer, accumulate)
    else:
        advance = exchanging(exchange, loss, optimizer, mesh)
    return Step(
        advance,
        optimizer,
        state=state,
        mesh=mesh,
        row_axes=row_axes or (lambda _: axis),
        prepare=prepare,
        own_rows=own_rows,
    )


def _without_statistics(loss_fn: LossFn) -> StatefulLossFn:
    def loss(
        trainable: PyTree, statistics: PyTree, frozen: PyTree, batch: Any, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Metrics, PyTree]]:
        value, metrics = loss_fn(trainable, frozen, batch, key)
        return value, (metrics, statistics)

    return loss
