"""Text half, small: all-MiniLM-L6-v2 with LoRA on q, k and v, texts of up to 256 tokens.

Run, after `star import` into the same folder:
    star train-text configs/text/small.py --workdir runs/mine

One epoch in at most twenty minutes, on one GPU or on CPU cores: a training step costs some 46 MFLOP
a token, so that two cores read about 2,000 tokens a second. Mean over tokens, the last layer,
bidirectional and no prompt are the family's; 110,592 adapter parameters train. Not yet run to a
metric: the quickstart, which trains the same tower on shorter texts, has those.
"""

from star_jax.jobs.train_text import TextTrainConfig
from star_jax.text.tower import TowerConfig
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig


def get_config() -> TextTrainConfig:
    """Returns the preset between tiny and 7b."""
    return TextTrainConfig(
        tower=TowerConfig(base="minilm"),
        # As in the quickstart: a new head beside adapted weights learns faster.
        optimizer=OptimizerConfig(
            learning_rate=3e-4, rate_multipliers=((r"(.*/)?scorer/.*", 5.0),)
        ),
        plan=PlanConfig(num_epochs=1.0, budget_s=1200.0),
    )
