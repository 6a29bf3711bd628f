"""Graph half as GraphSAGE with mean aggregation: the paper's simplest encoder (its Table 3).

Run, on GPUs of 80 GB, after `star import`, `star export-text` and `star build-graph`:
    star train-graph configs/graph/mean_sage.py --workdir runs/recommended

One encoder for both roles, linear, the mean of transformed neighbours beside the node itself; the
rest is the preset `recommended`. Not yet run at this size.
"""

import dataclasses

from configs.run import recommended
from star_jax.jobs.train_graph import GraphTrainConfig


def get_config() -> GraphTrainConfig:
    """Returns the preset's graph half with a plain encoder."""
    config = recommended.get_config().train_graph
    encoder = dataclasses.replace(
        config.model.encoder,
        pooling="mean",
        heads=1,
        multiplier=1,
        include_receiver=False,
        dual=False,
        activation="linear",
        skip="none",
    )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, encoder=encoder))
