"""Maps fitted by steps of Adam on drawn pairs; pairs that are held back choose where to stop."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int64

from star_jax.shapes import PyTree

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DescentConfig:
    """How `sgd` and `mlp` go down.

    Attributes:
      learning_rate: Of Adam at the first step; it falls to 0 along a cosine. Both sides are scaled
        to dimensions of mean square 1, so that one rate serves all versions.
      batch_size: Pairs of a step.
      num_steps: At most.
      validate_every: Steps between two looks at the pairs held back for stopping.
      patience: Looks in a row without a gain after which it ends.
      stopping: Share of the pairs that choose the stopping point; none of them is fitted on.
      seed: Of the order of the pairs and of the network's first weights.
    """

    learning_rate: float = 1e-2
    batch_size: int = 1024
    num_steps: int = 10_000
    validate_every: int = 100
    patience: int = 20
    stopping: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate {self.learning_rate} must be > 0")
        for name in ("batch_size", "num_steps", "validate_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be >= 1")
        if not 0 < self.stopping < 1:
            raise ValueError(f"stopping {self.stopping} must be a share between 0 and 1")


class Rows(NamedTuple):
    """Pairs to draw from.

    Attributes:
      number: Of pairs.
      take: x and y of some of them, by number.
    """

    number: int
    take: Callable[
        [Int64[np.ndarray, " N"]], tuple[Float[np.ndarray, "N I"], Float[np.ndarray, "N O"]]
    ]


Loss = Callable[[PyTree, Float[Array, "N I"], Float[Array, "N O"]], Float[Array, ""]]
"""Mean loss of a block, of parameters, x and y."""


class Descended(NamedTuple):
    """Where a descent ended.

    Attributes:
      params: Those of the best look, as numpy.
      step: It was at; 0: the first parameters were the best.
      loss: Mean over the pairs held back.
    """

    params: PyTree
    step: int
    loss: float


def descend(
    loss: Loss,
    penalty: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    rows: Rows,
    stopping: Rows,
    config: DescentConfig,
) -> Descended:
    """Minimises the mean loss plus the penalty; the same seed gives the same map.

    Args:
      loss: Of a block of pairs.
      penalty: Of the parameters, counted in every step and in no look.
      params: To begin with.
      rows: Fitted on: one or more.
      stopping: Look at these: one or more.
      config: As described there.
    """
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    optimizer = optax.adam(schedule)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(
        params: PyTree, state: PyTree, x: Float[Array, "N I"], y: Float[Array, "N O"]
    ) -> tuple[PyTree, PyTree]:
        gradient = jax.grad(lambda p: loss(p, x, y) + penalty(p))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    look = jax.jit(loss)
    state = optimizer.init(params)
    size = min(config.batch_size, rows.number)
    best = Descended(jax.tree.map(np.array, params), 0, _mean(look, params, stopping, size))
    drawn = _batches(rows.number, size, config.seed)
    since = 0
    for step in range(1, config.num_steps + 1):
        params, state = update(params, state, *_block(rows, next(drawn)))
        if step % config.validate_every and step != config.num_steps:
            continue
        value = _mean(look, params, stopping, size)
        since = since + 1
        if value < best.loss:  # A NaN is no gain.
            best, since = Descended(jax.tree.map(np.array, params), step, value), 0
        if since == config.patience:
            break
    _log.info("best at step %d of at most %d: loss %.6g", best.step, config.num_steps, best.loss)
    return best


def _batches(count: int, size: int, seed: int) -> Iterator[Int64[np.ndarray, " N"]]:
    """Numbers of pairs, epoch after epoch in new orders; the rest of an epoch is left out."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield np.sort(order[start : start + size])  # Files are read forwards.


def _mean(look: Any, params: PyTree, rows: Rows, size: int) -> float:
    """The loss over all rows, block by block."""
    total = 0.0
    for start in range(0, rows.number, size):
        numbers = np.arange(start, min(start + size, rows.number))
        total += len(numbers) * float(look(params, *_block(rows, numbers)))
    return total / rows.number


def _block(
    rows: Rows, numbers: Int64[np.ndarray, " N"]
) -> tuple[Float32[np.ndarray, "N I"], Float32[np.ndarray, "N O"]]:
    x, y = rows.take(numbers)
    return x.astype(np.float32), y.astype(np.float32)
