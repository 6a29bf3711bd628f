"""Text half, tiny: a random two-layer Mistral with a byte tokenizer, on one CPU core.

Run, after `star import` of a market into the same folder:
    star train-text configs/text/tiny.py --workdir runs/tiny

It shows that every part works and learns the training pairs a little; it does not know a word.
"""

from star_jax.jobs.train_text import TextTrainConfig
from star_jax.text.families import TokenLimits
from star_jax.text.lora import LoraConfig
from star_jax.text.scorer import ScorerConfig
from star_jax.text.tower import TowerConfig
from star_jax.train.optimizers import OptimizerConfig
from star_jax.train.plan import PlanConfig


def get_config() -> TextTrainConfig:
    """Returns the smallest run that still learns."""
    return TextTrainConfig(
        tower=TowerConfig(
            base="random",
            prompts="none",  # A byte a token: a prompt would leave no room for the text.
            limits=TokenLimits(job=32, profile=32, resume=32, other=16),
        ),
        lora=LoraConfig(rank=2),
        scorer=ScorerConfig(hidden=(16,)),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        plan=PlanConfig(num_steps=10, budget_s=None, validate_epochs=0.02),
        batch_size=8,
        microbatch_size=4,  # Two slices, so that accumulation runs here too.
        num_tables=1,
        validation_pairs=64,
        validation_tokens=1024,
    )
