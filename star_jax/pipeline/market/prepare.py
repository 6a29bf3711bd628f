"""From a config to a folder that `star import` takes: array_record, then Parquet and the schema."""

import logging
from pathlib import Path

import pyarrow.parquet as pq

from star_jax.pipeline.market import builder
from star_jax.pipeline.market.schema import market_schema
from star_jax.pipeline.market.size import MarketConfig
from star_jax.pipeline.tables.schema import Schema
from star_jax.pipeline.tables.schema_file import schema_json

_LOG = logging.getLogger(__name__)


def prepare_market(market: MarketConfig, folder: Path) -> Schema:
    """Generates a market as a TFDS data set, reads it back, and writes its input tables.

    Args:
      market: Which market.
      folder: Gets `tfds/`, the tables as Parquet files, and `schema.json`; `star import
        --source` takes it as it is.

    Returns:
      The schema of the tables.
    """
    read = builder.read(builder.prepare(market, folder / "tfds"))
    for name, table in read.tables.items():
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    schema = market_schema()
    (folder / "schema.json").write_text(schema_json(schema), encoding="utf-8")
    best = read.facts["optimum"]["apply"]["test"]
    _LOG.info(
        "market of %d members: the planted truth has AUC %.4f against uniform negatives, which "
        "is the best reachable; %.4f (popular), %.4f (near)",
        market.num_members,
        best["auc_uniform"],
        best["auc_popular"],
        best["auc_near"],
    )
    if read.facts["floored"]:
        _LOG.info(
            "more than the paper's share, for the market is small: %s",
            ", ".join(read.facts["floored"]),
        )
    return schema
