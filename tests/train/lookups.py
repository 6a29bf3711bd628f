"""A regression on sums of table rows, trained by rows; `read` is what a model has to bring."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.parallel.rules import FSDP_RULES, with_tables
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.rows import make_row_optimizer
from star_jax.train.state import create_state
from star_jax.train.step import make_step

WIDTH, ROWS = 4, 16
TABLES = "table/.*"
RATE = 3.0  # Of the tables.
CONFIG = OptimizerConfig(learning_rate=0.1, weight_decay=0.3, clip_norm=0.5, b2=0.9)

RULES = with_tables(FSDP_RULES, TABLES)


class Batch(NamedTuple):
    row: Any
    y: Any
    mask: Any


def batch_of(number, num_rows=32):
    """Rows repeat; the last two are padding that points to row 0, which is else never read."""
    rng = np.random.default_rng(number)
    row = rng.integers(1, min(num_rows, 12), ROWS).astype(np.int32)
    mask = np.arange(ROWS) < ROWS - 2
    return Batch(np.where(mask, row, 0), rng.normal(size=ROWS).astype(np.float32), mask)


def params(num_rows=32) -> dict[str, Any]:
    table = np.random.default_rng(0).normal(size=(num_rows, WIDTH)).astype(np.float32)
    return {"head": {"kernel": jnp.ones(WIDTH)}, "table": {"vectors": table}}


def loss_fn(trainable, frozen, batch, key):
    guess = trainable["table"]["vectors"][batch.row] @ trainable["head"]["kernel"]
    square = jnp.where(batch.mask, jnp.square(guess - batch.y), 0.0)
    return square.sum() / batch.mask.sum(), {}


def reader(num_rows):
    def read(batch):
        real = jnp.where(batch.mask, batch.row, num_rows)
        rows, place = jnp.unique(real, return_inverse=True, size=ROWS + 1, fill_value=num_rows)
        return batch._replace(row=place), {"table": {"vectors": rows}}

    return read


def optimizer_of(rule, num_rows=32, config=CONFIG):
    return make_row_optimizer(config, rule, rate=RATE, tables=TABLES, read=reader(num_rows))


def begin(rule, mesh, num_rows=32, config=CONFIG):
    """State and step."""
    optimizer = optimizer_of(rule, num_rows, config)
    state = create_state(params(num_rows), optimizer, seed=1, mesh=mesh, rules=RULES)
    return state, make_step(loss_fn, optimizer, state=state, mesh=mesh)


def train(rule, mesh, num_steps=5):
    state, step = begin(rule, mesh)
    for number in range(num_steps):
        state, _ = step(state, {}, step.place(batch_of(number)), 0.1)
    return jax.tree.map(np.asarray, state._replace(rng=()))
