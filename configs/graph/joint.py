"""Graph half that stays compatible with an older version, by maps that are trained with it.

Run, after the stages before it into the same folder, with the older vectors in another one:
    star train-graph configs/graph/joint.py --workdir runs/next
    star export-graph configs/run/quickstart.py --workdir runs/next

The quickstart's graph half. The export writes the maps as `runs/next/transform`. With more versions
before the older one: --compatible.mode joint_multi and --compatible.chain, or, with a registry,
--compatible.registry and --compatible.oldest. Not yet run at size.
"""

import dataclasses

from configs.run import quickstart
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.pipeline.graph_compatible import CompatibleConfig


def get_config() -> GraphTrainConfig:
    """Returns the quickstart's graph half with maps to the vectors in `runs/market`."""
    compatible = CompatibleConfig(old="runs/market/graph_embeddings")
    return dataclasses.replace(quickstart.get_config().train_graph, compatible=compatible)
