"""`train-graph` on the graph market; run as a script, it kills itself in the middle."""

import dataclasses
import os
import signal
import sys
from pathlib import Path

from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.encoder import GraphEncoderConfig
from star_jax.graph.features import FeatureConfig
from star_jax.graph.match import MatchConfig
from star_jax.graph.model import GraphModelConfig
from star_jax.graph.samplers.adaptive import AdaptiveConfig
from star_jax.graph.samplers.fanouts import FanoutConfig
from star_jax.jobs import train_graph
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.parallel.mesh import MeshConfig
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig
from star_jax.train.reporter import Reporter

DIE_AT = 6  # After the first validation, and the checkpoint that goes with it.
# A plan made by the clock; the budget leaves room for all of the epoch and its validations.
BUDGETED = PlanConfig(num_epochs=1.0, budget_s=1e4, validate_epochs=0.2, validation_share=0.9)

# Of the skills, the half with most edges keep vectors of their own.
BY_ROWS = FeatureConfig(identity_update="adam", identity_rate=2.0, identity_min_edges=13)

# The first validation that follows another one adds all that are left.
GROWING = AdaptiveConfig(start=2, stride=4, tolerance=1.0, decay=1.0)


def config(num_steps=6, **fields) -> GraphTrainConfig:
    """One narrow layer; dropout is on, so that the key of a step matters."""
    defaults = {
        "model": GraphModelConfig(
            encoder=GraphEncoderConfig(dim=8, multiplier=1, layers=1, heads=2, dropout=0.2),
            decoder=DecoderConfig(
                hidden_size=8, dropout=0.1, match=MatchConfig(width=8, text_width=12)
            ),
        ),
        "fanouts": FanoutConfig(total=(6,)),
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "plan": PlanConfig(num_steps=num_steps, budget_s=None, validate_epochs=0.5),
        "mesh": MeshConfig(data=1),
        "batch_size": 48,
        "validation_pairs": 60,
    }
    return GraphTrainConfig(**defaults | fields)


def growing(plan=BUDGETED) -> GraphTrainConfig:
    """What is killed: its batches change, and its optimizer remembers rows of tables."""
    model = dataclasses.replace(config().model, features=BY_ROWS)
    return config(plan=plan, adaptive=GROWING, model=model)


def _kill_at(step: int) -> None:
    log = Reporter.log

    def dying_log(self, now, split, metrics):
        log(self, now, split, metrics)
        if (now, split) == (step, "train"):
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(Reporter, "log", dying_log)  # noqa: B010 - an assignment would have another type.


if __name__ == "__main__":
    _kill_at(DIE_AT)
    train_graph.run(growing(), Path(sys.argv[1]))
