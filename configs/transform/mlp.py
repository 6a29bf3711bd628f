"""MLP: the ridge's matrix and a network of 256 beside it, for versions that differ by a bend.

Run:
    star fit-transform configs/transform/mlp.py --old runs/v1/graph_embeddings \
        --new runs/v2/graph_embeddings --output runs/v2/transform

Some minutes on a CPU at most: 10,000 steps of 1024 pairs, ended by 5 % of the pairs. Never worse
than the ridge on those; a chain applies networks one after the other. Not yet run to a metric.
"""

from star_jax.embeddings.transforms.fit import TransformConfig


def get_config() -> TransformConfig:
    """Returns a map about the means, whose network starts from nothing."""
    return TransformConfig(mode="mlp", bias=True)
