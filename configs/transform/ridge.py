"""Ridge: the best matrix from the new version's vectors to the old one's, in closed form.

Run, with two folders of embeddings or two names in a registry:
    star fit-transform configs/transform/ridge.py --old runs/v1/graph_embeddings \
        --new runs/v2/graph_embeddings --output runs/v2/transform

One pass over the pairs, any number of them in flat memory; `bench/results/transform.md` has the
time of ten million. One matrix per node type, no bias: the paper's Eq. 8 fitted to Eq. 9.
"""

from star_jax.embeddings.transforms.fit import TransformConfig


def get_config() -> TransformConfig:
    """Returns the defaults."""
    return TransformConfig()
