"""What consumers of one version of embeddings may lose on the next.

They are a product of vectors, logistic regression, boosted trees and a small network, asked for
every task and attribute of the tables.

Run, with embeddings of two versions and a map between them:
    star check-consumers configs/contract/default.py --workdir runs/market --old OLD --new NEW
        --transform MAP --output runs/market/contract

Limits are a start, for versions that were made to be compatible: `--limits.auc_drop 0.01` is
stricter. Exit code 1 and a line for every limit that is broken. A minute or two on two cores for
the synthetic market.
"""

from star_jax.jobs.check_consumers import ContractConfig


def get_config() -> ContractConfig:
    """Returns the consumers and limits that stand in their classes."""
    return ContractConfig()
