"""A linear regression that trains like the real models; run as a script, it can be killed."""

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import FSDP_RULES
from star_jax.train.checkpoints import Checkpointer, tree_digest
from star_jax.train.loop import Arithmetic, Counts, Trained, train
from star_jax.train.optimizers import OptimizerConfig, learning_rate, make_optimizer
from star_jax.train.plan import Plan
from star_jax.train.reporter import Reporter
from star_jax.train.state import create_state
from star_jax.train.step import make_step

WIDTH = 4
ROWS = 16


class Batch(NamedTuple):
    x: Any
    y: Any
    mask: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=0.05, clip_norm=0.0)
    num_steps: int = 12
    patience: int | None = None
    accept_from: int = 0


class Batches:
    """Batch i depends on i alone."""

    def __init__(self):
        self.position = 0

    def __next__(self):
        rng = np.random.default_rng(self.position)
        self.position += 1
        x = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
        mask = np.arange(ROWS) < rng.integers(4, ROWS + 1)
        return Batch(x, x.sum(axis=1), mask)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def params():
    return {"layer": {"kernel": jnp.zeros((WIDTH,)), "bias": jnp.zeros(())}}


def frozen():
    return {"scale": jnp.float32(2.0)}


def loss_fn(trainable, frozen, batch, key):
    noise = 0.01 * jax.random.normal(key, ())  # So that the key matters.
    guess = (batch.x * frozen["scale"]) @ trainable["layer"]["kernel"] + trainable["layer"]["bias"]
    square = jnp.where(batch.mask, jnp.square(guess + noise - batch.y), 0.0)
    return square.sum() / jnp.maximum(batch.mask.sum(), 1), {"rows": batch.mask.sum()}


def one_device():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


def distance(state):
    """To the solution; what validation maximises."""
    return {"score": -float(jnp.sum(jnp.square(state.trainable["layer"]["kernel"] - 0.5)))}


def run(
    folder: Path, job: Job, *, batches=None, save_hook=None, validate=None, checkpoint_s=1e9
) -> Trained:
    """Trains and validates."""
    mesh, optimizer = one_device(), make_optimizer(job.optimizer)
    state = create_state(params(), optimizer, seed=0, mesh=mesh, rules=FSDP_RULES)
    checkpointer = Checkpointer(
        folder / "checkpoints", config=job, frozen_digest=tree_digest(frozen())
    )
    if save_hook:
        save_hook(checkpointer)
    return train(
        name="regression",
        state=state,
        frozen=frozen(),
        step=make_step(loss_fn, optimizer, state=state, mesh=mesh),
        batches=batches or Batches(),
        count=lambda batch: Counts(
            int(batch.mask.sum()), ROWS, Arithmetic(8.0 * ROWS, 16.0 * ROWS)
        ),
        unit="rows",
        rate=lambda step: learning_rate(job.optimizer, step, num_steps=job.num_steps, warmup=2),
        peak_flops=1e6,
        plan=Plan(job.num_steps, 4, 4.0, checkpoint_s, job.patience, None),
        validate=validate or distance,
        checkpointer=checkpointer,
        reporter=Reporter(folder),
        accept_from=job.accept_from,
    )


class KillingBatches(Batches):
    """Kills the process when a batch is asked for."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def __next__(self):
        if self.position == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__next__()


def _kill_in_save(checkpointer: Checkpointer) -> None:
    """Kills the process when arrays are there but not their manifest, and there are older steps."""
    from star_jax import artefacts

    seal = artefacts.seal

    def dying_seal(folder, kind, meta):
        if any(checkpointer.steps()):
            os.kill(os.getpid(), signal.SIGKILL)
        seal(folder, kind, meta)

    artefacts.seal = dying_seal


if __name__ == "__main__":
    where, what = Path(sys.argv[1]), sys.argv[2]
    if what == "save":
        run(where, Job(), save_hook=_kill_in_save)
    else:
        run(where, Job(), batches=KillingBatches(int(what)))
