"""The whole path, tiny: the tiny market, a random text tower, a narrow graph; a few minutes.

Run:
    star run configs/run/tiny.py --workdir runs/tiny

It shows that every stage works and that the numbers add up; no number is good.
"""

import dataclasses

from configs.graph import tiny as graph_tiny
from configs.run import quickstart
from configs.text import tiny as text_tiny
from star_jax.graph.samplers.fanouts import FanoutConfig
from star_jax.jobs.export_text import TextExportConfig
from star_jax.jobs.import_tables import ImportConfig
from star_jax.jobs.run import RunConfig
from star_jax.pipeline.market.size import MarketConfig


def get_config() -> RunConfig:
    """Returns the smallest run of all stages."""
    graph = graph_tiny.get_config()
    features = dataclasses.replace(graph.model.features, text="vectors")
    encoder = dataclasses.replace(graph.model.encoder, layers=1)  # Two compile thrice as long.
    model = dataclasses.replace(graph.model, features=features, encoder=encoder)
    return dataclasses.replace(
        quickstart.get_config(),
        tables=ImportConfig(market=MarketConfig(size="tiny")),
        train_text=text_tiny.get_config(),
        export_text=TextExportConfig(batch_tokens=1024, num_lengths=1),
        train_graph=dataclasses.replace(graph, model=model, fanouts=FanoutConfig(total=(8,))),
    )
