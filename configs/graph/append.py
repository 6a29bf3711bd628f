"""Adds what is new since the last build to a graph: edges, nodes, texts.

Run, after `star build-graph` into the same folder, with the tables of what is new in a folder:
    star append-edges configs/graph/append.py --workdir runs/market --additions data/new

The layout of that folder is in star_jax/graph/additions.py. The graph is copied once and only what
is new is sorted.
"""

from pathlib import Path

from star_jax.jobs.append_edges import AppendConfig


def get_config() -> AppendConfig:
    """Returns additions that lie beside the data."""
    return AppendConfig(additions=Path("data/new"))
