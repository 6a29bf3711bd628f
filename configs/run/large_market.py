"""The graph half on a market of 10 million nodes: two cores, less than 16 GiB.

Run, after `star draw-market configs/market/large.py --workdir runs/large`:
    star build-graph configs/run/large_market.py --workdir runs/large
    star train-graph configs/run/large_market.py --workdir runs/large
    star export-graph configs/run/large_market.py --workdir runs/large

1,000 steps of 512 pairs, 10 neighbours a node and hop; then a vector of 200 float16 for every node
of every type, layer by layer, with rows of bfloat16 between the layers. The text half is not run:
the market comes with vectors. bench/results/market_scale.md has times and memory.
"""

import dataclasses

from configs.run import quickstart
from star_jax.graph.build import BuildOptions
from star_jax.graph.encoder import GraphEncoderConfig
from star_jax.graph.features import FeatureConfig
from star_jax.graph.model import GraphModelConfig
from star_jax.graph.samplers.fanouts import FanoutConfig
from star_jax.jobs.build_graph import GraphBuildConfig
from star_jax.jobs.export_graph import GraphExportConfig
from star_jax.jobs.run import RunConfig
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.pipeline.market.size import NODE_MILLIONS
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig


def get_config() -> RunConfig:
    """Returns the run; the configs of its text half are those of the quickstart."""
    return dataclasses.replace(
        quickstart.get_config(),
        build_graph=GraphBuildConfig(options=BuildOptions(memory_limit_gib=4.0)),
        train_graph=_train_graph(),
        export_graph=GraphExportConfig(
            node_types=tuple(NODE_MILLIONS),
            inference="layerwise",
            precision="float16",
            state_precision="bfloat16",
        ),
    )


def _train_graph() -> GraphTrainConfig:
    # Tables of identities have a row for each of 65,536 nodes of a type, others share them; the
    # rows that a batch reads are updated.
    features = FeatureConfig(identity_rows=1 << 16, identity_update="adagrad")
    encoder = GraphEncoderConfig(dim=200, multiplier=1)
    return GraphTrainConfig(
        model=GraphModelConfig(features=features, encoder=encoder),
        fanouts=FanoutConfig(total=(10, 10)),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        plan=PlanConfig(num_steps=1000, budget_s=None, validate_epochs=0.25),
        batch_size=512,
        validation_pairs=4000,
    )
