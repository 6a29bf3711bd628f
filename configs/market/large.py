"""A market of 10 million nodes and 160 million edges, with text vectors of 256 bytes.

Run, then go on with configs/run/large_market.py:
    star draw-market configs/market/large.py --workdir runs/large

`--num_members 49300` is a hundredth of it. bench/results/market_scale.md has times and memory.
"""

from star_jax.pipeline.market.scale.size import LargeMarketConfig


def get_config() -> LargeMarketConfig:
    """Returns the market in the paper's proportions."""
    return LargeMarketConfig(num_members=4_930_000)
