"""Text half on multilingual-e5-small, for tables of other languages than English.

Run, after `star import` into the same folder:
    star train-text configs/text/e5_small.py --workdir runs/mine

The stand-in for the paper's "LE-5-xsmall", which is private: 12 layers of 384, read with the
prefixes it was trained with. Downloaded from the Hugging Face hub (470 MB), unless `--tower.base`
names a folder. Per token twice the cost of `small`; not yet run.
"""

import dataclasses

from configs.text import small
from star_jax.jobs.train_text import TextTrainConfig


def get_config() -> TextTrainConfig:
    """Returns `small` on another base."""
    config = small.get_config()
    tower = dataclasses.replace(config.tower, base="intfloat/multilingual-e5-small", prompts="e5-1")
    return dataclasses.replace(config, tower=tower)
