"""`star import`: checks the input tables and writes them in the form that every stage reads.

With `beam` the workers of an Apache Beam runner read, check and resolve the files of events and
edges (`star_jax/pipeline/beam/engine.py` shows options), into files under `W/.import_parts` until
the tables are there. Nodes, texts, fixed pairs, splits, negatives and what is written are this
process's, out of core by DuckDB. The tables are the same.
"""

import logging
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.pipeline.beam.engine import check_installed, check_options
from star_jax.pipeline.beam.tables import BeamLoad
from star_jax.pipeline.market.prepare import prepare_market
from star_jax.pipeline.market.size import MarketConfig
from star_jax.pipeline.tables.build import build, load_here
from star_jax.pipeline.tables.database import Limits
from star_jax.pipeline.tables.read import KIND
from star_jax.pipeline.tables.schema import Schema
from star_jax.pipeline.tables.schema_file import read_schema
from star_jax.pipeline.tables.tidy import tidy_schema
from star_jax.sorting import check_limits

_LOG = logging.getLogger(__name__)
_SCHEMA_NAMES = ("schema.json", "schema.py")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What to import.

    Attributes:
      source: Folder with the tables. None: a synthetic labour market is made and imported.
      market: Which market that is.
      schema: File that describes them. None: `schema.json` or `schema.py` of the folder if there
        is one, else the folder must have the layout star-tidy-1.
      seed: Of the negatives that are drawn.
      personal_data: "file:column" of columns that look like personal data and may be there, added
        to the schema's own list.
      fix: Repair what leaves no choice (exact copies of rows, blanks around ids); counted.
      memory_limit_gib: For the tables while they are checked; beyond it DuckDB spills to the
        output's disk.
      num_threads: For the same.
      beam: Options of Apache Beam pipelines, such as "runner=FnApiRunner"; the limits above are
        then those of each of its workers too. Empty: this process reads all.
      part_rows: About as many rows a worker of Beam checks at a time.
    """

    source: Path | None = None
    market: MarketConfig = field(default_factory=MarketConfig)
    schema: Path | None = None
    seed: int = 0
    personal_data: tuple[str, ...] = ()
    fix: bool = False
    memory_limit_gib: float = 2.0
    num_threads: int = 2
    beam: tuple[str, ...] = ()
    part_rows: int = 1 << 22

    def __post_init__(self) -> None:
        check_options(self.beam)
        if self.part_rows < 1:
            raise ValueError(f"part_rows {self.part_rows} must be >= 1")
        check_limits(self.memory_limit_gib, self.num_threads)


def run(config: ImportConfig, workdir: Path) -> None:
    """Writes `workdir/tables`.

    Raises:
      InputError: Something is wrong with the input; nothing is written.
    """
    check_installed(config.beam)
    if config.source is not None and config.source.is_file():
        raise InputError(f"source {config.source} is a file, needed the folder that it lies in")
    if config.source is not None and not config.source.is_dir():
        raise InputError(
            f"source {config.source} does not exist, needed a folder with tables (--source)"
        )
    scratch = workdir / ".import_parts"
    with artefacts.writing(workdir / "tables", KIND) as partial:
        source = config.source
        if source is None:
            # Not kept: it holds the members who did not consent.
            source = partial / ".market"
            prepare_market(config.market, source)
        schema = find_schema(source, config.schema)
        schema = replace(schema, personal_data=(*schema.personal_data, *config.personal_data))
        limits = Limits(config.memory_limit_gib, config.num_threads)
        load = load_here
        if config.beam:
            load = BeamLoad(config.beam, scratch, config.part_rows, limits, fix=config.fix)
        meta = build(source, schema, partial, limits, seed=config.seed, fix=config.fix, load=load)
        artefacts.set_meta(partial, asdict(meta))
        if config.source is None:
            shutil.rmtree(source)
    if config.beam:
        artefacts.remove(scratch)
    nodes = ", ".join(f"{node.count} {name}" for name, node in meta.node_types.items())
    edges = sum(edge.count for edge in meta.edge_types)
    _LOG.info("imported %s: nodes %s; %d edges", meta.dataset, nodes, edges)


def find_schema(source: Path, schema: Path | None) -> Schema:
    """The schema that is named, that lies in the folder, or that the layout implies."""
    if schema is not None:
        return read_schema(schema)
    for name in _SCHEMA_NAMES:
        if (source / name).is_file():
            return read_schema(source / name)
    return tidy_schema(source)
