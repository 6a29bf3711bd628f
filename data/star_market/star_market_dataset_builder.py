"""The synthetic labour market for the TFDS tools; `README.md` says how to prepare it.

The class lives in the package, for `star import` generates markets where this folder is absent.
"""

from star_jax.pipeline.market.builder import StarMarket as Builder

__all__ = ["Builder"]
