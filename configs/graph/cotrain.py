"""Graph half whose steps encode the texts and train adapters of the encoder with the graph.

Run, after `star import`, `star train-text` and `star build-graph` into the same folder:
    star train-graph configs/graph/cotrain.py --workdir runs/market
    star export-text configs/run/quickstart.py --workdir runs/market --source graph_model

The quickstart's graph half with fewer neighbours and pairs, since every text of a batch is encoded
anew; 32 texts of a batch train. Not yet run at size: a step costs a multiple of the quickstart's.
"""

import dataclasses

from configs.run import quickstart
from star_jax.graph.samplers.fanouts import FanoutConfig
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.pipeline.graph_text import GraphTextConfig


def get_config() -> GraphTrainConfig:
    """Returns the quickstart's graph half with the text encoder in its step."""
    config = quickstart.get_config().train_graph
    return dataclasses.replace(
        config,
        fanouts=FanoutConfig(total=(10,) * config.fanouts.num_hops),
        batch_size=96,  # The paper's, with Flan-T5-small and ten neighbours (its Table 9).
        text_encoder=GraphTextConfig(mode="lora", lm_train_nodes=32),
    )
