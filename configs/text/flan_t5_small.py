"""Text half on the encoder of Flan-T5-small, the better of the paper's small encoders (Table 9).

Run, after `star import` into the same folder:
    star train-text configs/text/flan_t5_small.py --workdir runs/mine

8 layers of 512, mean over the last layer, texts of up to 512 tokens. Downloaded from the Hugging
Face hub (308 MB, of which the encoder is read), unless `--tower.base` names a folder, or
`google/flan-t5-base`. 172,032 adapter parameters train. Not yet run.
"""

import dataclasses

from configs.text import small
from star_jax.jobs.train_text import TextTrainConfig


def get_config() -> TextTrainConfig:
    """Returns `small` on another base."""
    config = small.get_config()
    tower = dataclasses.replace(config.tower, base="google/flan-t5-small")
    return dataclasses.replace(config, tower=tower)
