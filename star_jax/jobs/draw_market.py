"""`star draw-market`: a synthetic market of any size, as tables and vectors of texts.

Writes `W/tables` and `W/text_embeddings`, block by block and by several processes. With `shard` it
draws the blocks of one shard alone, for machines that share the folder; the same command without
`shard` then draws what is missing and puts all blocks together.
"""

from pathlib import Path

from star_jax.pipeline.market.scale.draw import draw_large_market
from star_jax.pipeline.market.scale.size import LargeMarketConfig


def run(config: LargeMarketConfig, workdir: Path) -> None:
    """Draws the market, or what is missing of it."""
    draw_large_market(config, workdir)
