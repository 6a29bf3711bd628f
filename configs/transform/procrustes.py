"""Procrustes: the best rotation, so that all dot products of the new version stay.

Run:
    star fit-transform configs/transform/procrustes.py --old runs/v1/graph_embeddings \
        --new runs/v2/graph_embeddings --output runs/v2/transform

For consumers that read similarities within the mapped vectors, and for few pairs: it has no scale
to overfit. Where versions differ by more than a rotation, `ridge.py` comes nearer to the old one.
Not yet run to a metric.
"""

from star_jax.embeddings.transforms.fit import TransformConfig


def get_config() -> TransformConfig:
    """Returns the rotation of each node type."""
    return TransformConfig(mode="procrustes")
