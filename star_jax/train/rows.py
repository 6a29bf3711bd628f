"""Updates of tables that touch no rows but those a batch reads.

A table of ten million rows has a gradient of ten million rows, nearly all of them zero, and an
optimizer that reads and writes every one. Here a step takes the rows that its batch reads, with
what the optimizer keeps for them; it is an ordinary step on these small tables, since the gradient
of a row taken once is the sum over all that read it; and it puts them back where they were.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Shaped

from star_jax import trees
from star_jax.shapes import PyTree
from star_jax.train.optimizers import OptimizerConfig, make_optimizer

RowRule = Literal["adagrad", "adam"]

ReadRows = Callable[[Any], tuple[Any, PyTree]]
"""Batch -> the batch that reads from the taken rows alone, and `Taken.rows`."""


class RowState(NamedTuple):
    """What a `RowOptimizer` remembers."""

    rest: PyTree  # Of the optimizer of what is no table.
    slots: Any  # Of the row rule: a NamedTuple of trees like the tables, of as many rows.


class Taken(NamedTuple):
    """What a step by rows works on.

    `rows` is a tree like the tables. It says which rows were taken, ascending, each once; numbers
    beyond the table are padding: zeros are taken for them, and nothing is put back.
    """

    batch: Any  # Its numbers count the rows taken.
    rows: PyTree
    trainable: PyTree  # With the rows in place of the tables.
    opt_state: RowState


class AdagradSlots(NamedTuple):
    """Trees like the tables."""

    squares: PyTree  # Per row, the sum over its updates of the mean of its squared gradient.


class AdamSlots(NamedTuple):
    """Trees like the tables."""

    count: PyTree  # Per row, how often it was updated.
    mean: PyTree
    square: PyTree


@dataclasses.dataclass(frozen=True)
class RowOptimizer:
    """A row rule for the tables, another optimizer for all other parameters.

    Its `init` and `update` are those of an `optax.GradientTransformation`.

    Attributes:
      clip: Of all gradients together; without a state.
      rest: Of the parameters that are no tables.
      rule: Of the tables. It treats every row for itself, so that it may be given any of them.
      tables: Pattern of the paths of the tables, whose first dimension counts rows.
      read: Says which rows of the tables a batch reads.
    """

    clip: optax.GradientTransformation
    rest: optax.GradientTransformation
    rule: optax.GradientTransformation
    tables: str
    read: ReadRows

    def init(self, params: PyTree) -> RowState:
        """The state before the first step, of all rows."""
        tables, rest = trees.split(params, self.tables)
        return RowState(self.rest.init(rest), self.rule.init(tables))

    def update(self, updates: PyTree, state: RowState, params: PyTree) -> tuple[PyTree, RowState]:
        """Gradients to updates, of all rows that are given."""
        clipped: PyTree = self.clip.update(updates, optax.EmptyState())[0]
        grads, values = (trees.split(tree, self.tables) for tree in (clipped, params))
        parts: Any = (
            self.rule.update(grads[0], state.slots, values[0]),
            self.rest.update(grads[1], state.rest, values[1]),
        )
        (tables, slots), (rest, of_rest) = parts
        return trees.merge(rest, tables), RowState(of_rest, slots)

    def take(self, batch: Any, trainable: PyTree, state: RowState) -> Taken:
        """The rows that a batch reads, and what the rule keeps for them."""
        batch, rows = self.read(batch)
        tables, rest = trees.split(trainable, self.tables)
        slots = type(state.slots)(*(jax.tree.map(_take, slot, rows) for slot in state.slots))
        trainable = trees.merge(rest, jax.tree.map(_take, tables, rows))
        return Taken(batch, rows, trainable, state._replace(slots=slots))

    def put(
        self, rows: PyTree, part: tuple[PyTree, RowState], whole: tuple[PyTree, RowState]
    ) -> tuple[PyTree, RowState]:
        """Parameters and state with the rows that were taken, as they are now.

        Args:
          rows: `Taken.rows`.
          part: Trainable parameters and state after the step on the rows.
          whole: Both before it, of all rows.
        """
        (new, rest), (tables, _) = (trees.split(tree, self.tables) for tree, _ in (part, whole))
        slots = type(part[1].slots)(
            *(
                jax.tree.map(_put, old, rows, now)
                for old, now in zip(whole[1].slots, part[1].slots, strict=True)
            )
        )
        trainable = trees.merge(rest, jax.tree.map(_put, tables, rows, new))
        return trainable, part[1]._replace(slots=slots)


def make_row_optimizer(
    config: OptimizerConfig, rule: RowRule, *, rate: float, tables: str, read: ReadRows
) -> RowOptimizer:
    """AdamW as `make_optimizer` makes it, and a rule for tables, which are not decayed.

    Args:
      config: Of both; a rule takes from it what it has use for.
      rule: "adagrad": `row_adagrad`; "adam": `row_adam`.
      rate: Times the learning rate, for tables.
      tables: Pattern of their paths.
      read: As in `RowOptimizer`.
    """
    of_rows = (
        row_adagrad(config.eps, rate)
        if rule == "adagrad"
        else row_adam(config.b1, config.b2, config.eps, rate)
    )
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    rest = make_optimizer(dataclasses.replace(config, clip_norm=0.0))
    return RowOptimizer(clip, rest, of_rows, tables, read)


def row_adagrad(eps: float, rate: float) -> optax.GradientTransformation:
    """Adagrad with one sum of squares per row, as FBGEMM's exact row-wise Adagrad has it.

    s += mean(g^2), update = rate g / (sqrt(s) + eps). A row costs a number beside itself.
    """

    def init(tables: PyTree) -> AdagradSlots:
        return AdagradSlots(jax.tree.map(_per_row, tables))

    def update(
        grads: PyTree, state: AdagradSlots, tables: PyTree | None
    ) -> tuple[PyTree, AdagradSlots]:
        del tables
        squares = jax.tree.map(
            lambda total, grad: total + jnp.mean(grad**2, axis=1), state.squares, grads
        )
        updates = jax.tree.map(
            lambda total, grad: rate * grad / (jnp.sqrt(total) + eps)[:, None], squares, grads
        )
        return updates, AdagradSlots(squares)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType] # its state is ours


def row_adam(b1: float, b2: float, eps: float, rate: float) -> optax.GradientTransformation:
    """Lazy Adam: a row's moments move, and count for its bias correction, when it is read.

    A row that every batch reads is updated by Adam. A row costs two more and a number.
    """

    def init(tables: PyTree) -> AdamSlots:
        zeros = jax.tree.map(jnp.zeros_like, tables)
        count = jax.tree.map(lambda table: _per_row(table).astype(jnp.int32), tables)
        return AdamSlots(count, zeros, zeros)

    def update(grads: PyTree, state: AdamSlots, tables: PyTree | None) -> tuple[PyTree, AdamSlots]:
        del tables
        count = jax.tree.map(lambda number: number + 1, state.count)
        mean = jax.tree.map(lambda m, grad: b1 * m + (1 - b1) * grad, state.mean, grads)
        square = jax.tree.map(lambda v, grad: b2 * v + (1 - b2) * grad**2, state.square, grads)

        def step(number: Array, m: Array, v: Array) -> Array:
            m, v = (x / (1 - b**number)[:, None] for x, b in ((m, b1), (v, b2)))
            return rate * m / (jnp.sqrt(v) + eps)

        return jax.tree.map(step, count, mean, square), AdamSlots(count, mean, square)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType] # its state is ours


def _per_row(table: Shaped[Array, "rows D"]) -> Shaped[Array, " rows"]:
    return jnp.zeros(table.shape[:1], table.dtype)


def _take(table: Shaped[Array, "rows ..."], rows: Int[Array, " U"]) -> Shaped[Array, "U ..."]:
    return table.at[rows].get(mode="fill", fill_value=0, indices_are_sorted=True)


def _put(
    table: Shaped[Array, "rows ..."], rows: Int[Array, " U"], new: Shaped[Array, "U ..."]
) -> Shaped[Array, "rows ..."]:
    return table.at[rows].set(new, mode="drop", indices_are_sorted=True)
