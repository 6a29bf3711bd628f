"""A new version of embeddings becomes active, with ridge maps for the consumers of older ones.

Run, with a registry in which a consumer was trained on an older version:
    star release configs/release/default.py --workdir runs/v2 --registry R --new market-graph@2

Needs the extra `consumers` (scikit-learn). Two minutes on two cores for the synthetic market and
one old version; exit code 1, and nothing promoted, where a limit of the contract is broken.
"""

from star_jax.jobs.release import ReleaseConfig


def get_config() -> ReleaseConfig:
    """Returns ridge and the default contract."""
    return ReleaseConfig()
