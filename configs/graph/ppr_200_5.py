"""Graph half with "PPR 200 5": as configs/graph/ppr_50_5.py, of the 200 highest.

Run, on GPUs of 80 GB, after `star import`, `star export-text` and `star build-graph`:
    star train-graph configs/graph/ppr_200_5.py --workdir runs/recommended

What forward push leaves over is added to its scores, which gives scores to more nodes than it
settles. Not yet run at this size.
"""

import dataclasses

from configs.graph import ppr_50_5
from star_jax.graph.samplers.fanouts import FanoutConfig
from star_jax.jobs.train_graph import GraphTrainConfig


def get_config() -> GraphTrainConfig:
    """Returns the wider one of the two."""
    return dataclasses.replace(ppr_50_5.get_config(), fanouts=FanoutConfig(total=(200, 5)))
