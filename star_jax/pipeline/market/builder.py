"""The market as a TFDS data set: one split per table, one Arrow record batch per record.

Without TensorFlow, TFDS encodes about 5,000 rows a second, whatever they hold; whole batches make
a market of 150,000 rows a matter of a second, and keep nulls and types exactly.
"""

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds

from star_jax.config import to_json
from star_jax.pipeline.market.generate import Market, generate
from star_jax.pipeline.market.size import MarketConfig

NAME = "star_market"
FILE_FORMAT = "array_record"  # The Parquet output of TFDS loses rows.
_BATCH_ROWS = 4096
_DIGEST_CHARS = 12


@dataclass
class StarMarketConfig(tfds.core.BuilderConfig):
    """One market. The named ones are the three sizes with the default options."""

    market: MarketConfig = MarketConfig()


def _config_named(market: MarketConfig, name: str) -> StarMarketConfig:
    description = f"{market.num_members} members, seed {market.seed}"
    return StarMarketConfig(name=name, description=description, market=market)


def builder_config(market: MarketConfig) -> StarMarketConfig:
    """The builder config of a market: a named one, or one named after a digest of its options."""
    for known in StarMarket.BUILDER_CONFIGS:
        if known.market == market:
            return known
    digest = sha256(to_json(market).encode()).hexdigest()[:_DIGEST_CHARS]
    return _config_named(market, f"{market.size}-{digest}")


class StarMarket(tfds.core.GeneratorBasedBuilder):
    """A synthetic labour market with planted truth."""

    name = NAME
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 # TFDS declares it so.
    BUILDER_CONFIGS = [  # noqa: RUF012 # TFDS declares it so.
        _config_named(MarketConfig(size=size), size) for size in ("tiny", "small", "medium")
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "batch": tfds.features.Scalar(dtype=np.object_, doc="Arrow IPC stream."),
                    "num_rows": tfds.features.Scalar(dtype=np.int64),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
            license="Generated; no rights reserved.",
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, Any]]]:
        del dl_manager  # Nothing is downloaded.
        config = cast("StarMarketConfig", self.builder_config).market
        market = generate(config)
        cast("tfds.core.MetadataDict", self.info.metadata).update(
            facts=market.facts, market=json.loads(to_json(config))
        )
        return {
            _split_name(name): self._generate_examples(table)
            for name, table in market.tables.items()
        }

    def _generate_examples(self, table: pa.Table) -> Iterator[tuple[int, Any]]:
        for start in range(0, max(table.num_rows, 1), _BATCH_ROWS):
            part = table.slice(start, _BATCH_ROWS)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(part)
            yield start, {"batch": sink.getvalue().to_pybytes(), "num_rows": part.num_rows}


def prepare(market: MarketConfig, data_dir: Path) -> Path:
    """Generates a market and writes it below `data_dir`; returns the folder of the data set."""
    builder = StarMarket(
        data_dir=str(data_dir), config=builder_config(market), file_format=FILE_FORMAT
    )
    with _quiet():
        builder.download_and_prepare()
    return Path(builder.data_dir)


def read(folder: Path) -> Market:
    """Reads a market from the folder of its data set, without TensorFlow."""
    with _quiet():
        builder = tfds.builder_from_directory(str(folder))
    tables = {}
    for split in builder.info.splits:
        source = builder.as_data_source(split)  # pyright: ignore[reportCallIssue] # Decorated.
        batches = [pa.ipc.open_stream(record["batch"]).read_all() for record in source]
        tables[_table_name(split)] = pa.concat_tables(batches).combine_chunks()
    return Market(tables, cast("dict[str, Any]", builder.info.metadata)["facts"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints what it is about to do, and logs every file."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.WARNING)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _split_name(table: str) -> str:
    return table.replace("/", "-", 1)


def _table_name(split: str) -> str:
    return split.replace("-", "/", 1)
