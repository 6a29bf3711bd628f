"""The quickstart on a synthetic labour market of 2,000 members, in about a quarter of an hour.

Run:
    launch/quickstart.sh
or, where star_jax is installed:
    star run configs/run/market.py --workdir runs/market

The market's best reachable AUC is known and printed beside the models.
"""

import dataclasses

from configs.run import quickstart
from star_jax.jobs.run import RunConfig


def get_config() -> RunConfig:
    """Returns the quickstart with shorter budgets, and less to compile and to validate."""
    config = quickstart.with_budgets(quickstart.get_config(), text_s=150.0, graph_s=200.0)
    # Most texts fill their 64 tokens: one table of them has an eighth more than three, which cost
    # a compilation each.
    text = dataclasses.replace(
        config.train_text, num_tables=1, validation_lengths=1, validation_pairs=1000
    )
    return dataclasses.replace(config, train_text=text)
