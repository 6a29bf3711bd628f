"""Ridge for text embeddings: one matrix for all node types, whose texts share one space.

Run:
    star fit-transform configs/transform/text.py --old runs/v1/text_embeddings \
        --new runs/v2/text_embeddings --output runs/v2/text_transform

Texts pair by entity and time. Not yet run to a metric.
"""

import dataclasses

from configs.transform import ridge
from star_jax.embeddings.transforms.fit import TransformConfig


def get_config() -> TransformConfig:
    """Returns the ridge, shared."""
    return dataclasses.replace(ridge.get_config(), shared=True)
