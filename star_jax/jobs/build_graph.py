"""`star build-graph`: tables/ -> graph/.

With `beam` the workers of an Apache Beam runner survey and sort edges and texts
(`star_jax/pipeline/beam/engine.py` shows options), into files under `W/.graph_parts` until the
graph is there; this process puts them together. The graph is the same.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from star_jax import artefacts
from star_jax.config import to_json
from star_jax.graph.build import BuildOptions, build
from star_jax.graph.build_source import GraphTables, OpenSource
from star_jax.graph.schema import GraphSchema
from star_jax.graph.store import GraphStore
from star_jax.pipeline.beam.engine import check_installed, check_options
from star_jax.pipeline.beam.graph import open_on_beam
from star_jax.pipeline.progress import Work
from star_jax.pipeline.signals import choose, everything, parts_by_signal, read_signals
from star_jax.pipeline.tables.read import TablesMeta, read_meta

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphBuildConfig:
    """The config of `star build-graph`.

    Attributes:
      options: How to build.
      signals: File with the signals to build from, as `star branch` writes it. None: all that was
        imported.
      statistics_of: Folder of a graph whose means and deviations of dense columns, unit of age and
        kinds of texts are taken over, so that features mean what they meant there. None: they are
        made anew.
      beam: Options of Apache Beam pipelines that sort, such as "runner=FnApiRunner". Empty: this
        process sorts, as `options` says.
      part_rows: About as many edges a worker of Beam sorts at a time, at some 120 bytes each.
    """

    options: BuildOptions = dataclasses.field(default_factory=BuildOptions)
    signals: Path | None = None
    statistics_of: Path | None = None
    beam: tuple[str, ...] = ()
    part_rows: int = 1 << 22

    def __post_init__(self) -> None:
        check_options(self.beam)
        if self.part_rows < 1:
            raise ValueError(f"part_rows {self.part_rows} must be >= 1")
        if self.statistics_of is not None and (self.options.age_unit or self.options.text_kinds):
            raise ValueError(
                f"statistics_of is {self.statistics_of}, which gives the age_unit and the "
                "text_kinds; leave those of options out"
            )


def run(config: GraphBuildConfig, workdir: Path) -> None:
    """Builds the graph of the signals that are named, or of all that was imported."""
    check_installed(config.beam)
    tables = workdir / "tables"
    meta = read_meta(tables)
    manifest = everything(meta) if config.signals is None else read_signals(config.signals)
    chosen = choose(manifest, meta)
    like = (
        None if config.statistics_of is None else GraphStore.open(config.statistics_of, None).meta
    )
    names = {edge.key for edge in chosen.schema.edges}
    num_edges = sum(edge.count for edge in meta.edge_types if edge.name in names)
    work = Work("build-graph", 2 * num_edges, "edges")
    scratch = workdir / ".graph_parts"
    with artefacts.writing(workdir / "graph", "graph") as output:
        built = build(
            output,
            chosen.schema,
            files_of(meta, tables, chosen.texts),
            meta.time_unit,
            config.options,
            work.advance,
            like,
            {} if config.signals is None else parts_by_signal(manifest),
            _on_beam(config, tables, scratch, chosen.schema) if config.beam else None,
        )
    if config.beam:
        artefacts.remove(scratch)
    for node_type, columns in built.dense_stats.items():
        for column, (mean, deviation) in columns.items():
            _log.info("%s.%s: (x - %.6g) / %.6g", node_type, column, mean, deviation)
    _log.info(
        "graph %s: %d nodes, %d edges with their reverses",
        built.version[:12],
        sum(node.count for node in built.schema.nodes.values()),
        sum(built.num_edges.values()),
    )


def _on_beam(
    config: GraphBuildConfig, tables: Path, scratch: Path, schema: GraphSchema
) -> OpenSource:
    made_from = [artefacts.digest(tables), json.loads(to_json(schema)), config.part_rows]
    name = artefacts.content_digest(json.dumps(made_from).encode())[:16]
    return functools.partial(
        open_on_beam, options=config.beam, folder=scratch / name, part_rows=config.part_rows
    )


def files_of(meta: TablesMeta, tables: Path, texts: Iterable[str]) -> GraphTables:
    """Where the tables are.

    Those of nodes and edges are all there, whatever the graph takes of them: when training ends is
    no matter of signals.

    Args:
      meta: Of the tables.
      tables: Their folder.
      texts: Node types whose texts the graph takes.
    """
    return GraphTables(
        nodes={name: tables / "nodes" / f"{name}.parquet" for name in meta.node_types},
        edges={edge.name: tables / "edges" / f"{edge.name}.parquet" for edge in meta.edge_types},
        texts={name: tables / "texts" / f"{name}.parquet" for name in texts},
    )
