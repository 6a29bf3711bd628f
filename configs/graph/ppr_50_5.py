"""Graph half with "PPR 50 5": the 50 nodes of highest personalised PageRank, 5 neighbours each.

Run, on GPUs of 80 GB, after `star import`, `star export-text` and `star build-graph`:
    star train-graph configs/graph/ppr_50_5.py --workdir runs/recommended

The preset `recommended` with another sampler. The paper does not say what its two numbers are; a
number of neighbours per hop is how the encoder takes its sizes elsewhere. Not yet run at this size.
"""

import dataclasses

from configs.run import recommended
from star_jax.graph.samplers.fanouts import FanoutConfig
from star_jax.graph.samplers.sampler import SamplerConfig
from star_jax.jobs.train_graph import GraphTrainConfig


def get_config() -> GraphTrainConfig:
    """Returns the preset's graph half, sampled by rank."""
    return dataclasses.replace(
        recommended.get_config().train_graph,
        sampler=SamplerConfig(kind="ppr"),
        fanouts=FanoutConfig(total=(50, 5)),
        adaptive=None,  # The ranked neighbours are few from the start.
    )
