"""Graph half, tiny: two narrow layers and few neighbours, on one CPU core in a minute.

Run, after `star import` and `star build-graph` into the same folder:
    star train-graph configs/graph/tiny.py --workdir runs/tiny

It needs no text vectors. On the tiny market it learns; it is too small to be good.
"""

from star_jax.graph.decoders import DecoderConfig
from star_jax.graph.encoder import GraphEncoderConfig
from star_jax.graph.features import FeatureConfig
from star_jax.graph.match import MatchConfig
from star_jax.graph.model import GraphModelConfig
from star_jax.graph.samplers.fanouts import FanoutConfig
from star_jax.jobs.train_graph import GraphTrainConfig
from star_jax.train.plan import PlanConfig


def get_config() -> GraphTrainConfig:
    """Returns the smallest run that still learns."""
    return GraphTrainConfig(
        model=GraphModelConfig(
            features=FeatureConfig(text="off"),
            encoder=GraphEncoderConfig(dim=16, multiplier=1, heads=2),
            decoder=DecoderConfig(hidden_size=16, match=MatchConfig(width=16)),
        ),
        fanouts=FanoutConfig(total=(8, 4)),
        plan=PlanConfig(num_steps=20, budget_s=None, validate_epochs=0.1),
        batch_size=64,
        validation_pairs=200,
    )
