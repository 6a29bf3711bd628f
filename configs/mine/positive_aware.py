"""Hard negatives: the jobs that the text model ranks highest for each training positive.

Run, after `star export-text` in the same folder:
    star mine-negatives configs/mine/positive_aware.py --workdir runs/mine

Then train again with them, in a folder that holds the same tables/ and hard_negatives/:
    star train-text configs/text/small.py --workdir runs/again --num_negatives 2 --hard_negatives 1

The defaults leave out what scores above 95 % of the positive (NV-Embed), which is likely a match
that nobody recorded. Not yet run to a metric.
"""

from star_jax.jobs.mine_negatives import MineConfig
from star_jax.pipeline.mining.choose import ChoiceConfig


def get_config() -> MineConfig:
    """Returns a choice of four among the fifty best of each positive."""
    return MineConfig(choice=ChoiceConfig(num_negatives=4, window=50, sampling="random"))
