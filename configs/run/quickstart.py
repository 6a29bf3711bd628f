"""The whole path for any set of tables, on two CPU cores, in about an hour or less.

Run:
    launch/quickstart.sh DATA_DIR
or, where star_jax is installed:
    star run configs/run/quickstart.py --workdir runs/mine --tables.source data/mine

The text half adapts all-MiniLM-L6-v2 (fetched from the package index) by LoRA for twenty minutes;
the graph half trains for five with the text vectors, and for as many steps without them. It is the
preset of configs/run/recommended.py with a small base, narrow layers, fewer neighbours and budgets.
Widths, fan-outs and learning rates were chosen on the validation splits of two real sets and serve
all.
"""

import dataclasses

from configs.run import recommended
from star_jax.graph.samplers.fanouts import FanoutConfig
from star_jax.jobs.run import RunConfig
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.jobs.train_text import TextTrainConfig
from star_jax.text.families import TokenLimits
from star_jax.text.tower import TowerConfig
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig


def get_config() -> RunConfig:
    """Returns the preset `recommended`, as wide and as long as two cores can carry."""
    config = recommended.get_config()
    return dataclasses.replace(
        config, train_text=_train_text(), train_graph=_narrower(config.train_graph)
    )


def _train_text() -> TextTrainConfig:
    """Another base, so that nothing of the large one's choices is left."""
    return TextTrainConfig(
        # Half as many would cut 51 to 82 % of the profiles of two real sets, and cost accuracy.
        tower=TowerConfig(limits=TokenLimits(job=128, profile=192, resume=192, other=32)),
        # A new head beside adapted weights: it learns faster.
        optimizer=OptimizerConfig(
            learning_rate=3e-4, rate_multipliers=((r"(.*/)?scorer/.*", 5.0),)
        ),
        plan=PlanConfig(num_epochs=2.0, budget_s=1200.0),
    )


def _narrower(graph: GraphTrainConfig) -> GraphTrainConfig:
    encoder = dataclasses.replace(graph.model.encoder, dim=64, multiplier=2)
    return dataclasses.replace(
        graph,
        model=dataclasses.replace(graph.model, encoder=encoder),
        fanouts=FanoutConfig(total=(64, 6)),
        adaptive=None,  # Another size is another compilation, for which the budget is too short.
        optimizer=OptimizerConfig(learning_rate=1e-3),
        plan=PlanConfig(num_epochs=10.0, budget_s=300.0),
        batch_size=512,
    )


def with_budgets(config: RunConfig, *, text_s: float, graph_s: float) -> RunConfig:
    """The same run with other budgets, in seconds."""
    text, graph = config.train_text, config.train_graph
    return dataclasses.replace(
        config,
        train_text=dataclasses.replace(text, plan=dataclasses.replace(text.plan, budget_s=text_s)),
        train_graph=dataclasses.replace(
            graph, plan=dataclasses.replace(graph.plan, budget_s=graph_s)
        ),
    )
