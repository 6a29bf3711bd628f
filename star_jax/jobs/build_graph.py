"""`star build-graph`: tables/ -> graph/."""

import dataclasses
import logging
from pathlib import Path

from star_jax import artefacts
from star_jax.graph.build import BuildOptions, GraphTables, build
from star_jax.graph.schema import EdgeType, GraphSchema, NodeType
from star_jax.graph.store import GraphStore
from star_jax.pipeline.progress import Work
from star_jax.pipeline.tables.read import TablesMeta, read_meta

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphBuildConfig:
    """The config of `star build-graph`.

    Attributes:
      options: How to build.
      statistics_of: Folder of a graph whose means and deviations of dense columns, unit of age and
        kinds of texts are taken over, so that features mean what they meant there. None: they are
        made anew.
    """

    options: BuildOptions = dataclasses.field(default_factory=BuildOptions)
    statistics_of: Path | None = None

    def __post_init__(self) -> None:
        if self.statistics_of is not None and (self.options.age_unit or self.options.text_kinds):
            raise ValueError(
                f"statistics_of is {self.statistics_of}, which gives the age_unit and the "
                "text_kinds; leave those of options out"
            )


def run(config: GraphBuildConfig, workdir: Path) -> None:
    """Builds the graph of all node and edge types that were imported."""
    tables = workdir / "tables"
    meta = read_meta(tables)
    like = (
        None if config.statistics_of is None else GraphStore.open(config.statistics_of, None).meta
    )
    work = Work("build-graph", 2 * sum(edge.count for edge in meta.edge_types), "edges")
    with artefacts.writing(workdir / "graph", "graph") as output:
        built = build(
            output,
            schema_of(meta),
            files_of(meta, tables),
            meta.time_unit,
            config.options,
            work.advance,
            like,
        )
    for node_type, columns in built.dense_stats.items():
        for column, (mean, deviation) in columns.items():
            _log.info("%s.%s: (x - %.6g) / %.6g", node_type, column, mean, deviation)
    _log.info(
        "graph %s: %d nodes, %d edges with their reverses",
        built.version[:12],
        sum(node.count for node in built.schema.nodes.values()),
        sum(built.num_edges.values()),
    )


def schema_of(meta: TablesMeta) -> GraphSchema:
    """The graph's types, as the tables have them."""
    return GraphSchema(
        nodes={
            name: NodeType(
                count=node.count, categorical=dict(node.categorical), dense=tuple(node.dense)
            )
            for name, node in meta.node_types.items()
        },
        edges=tuple(
            EdgeType(
                sender=edge.sender, relation=edge.relation, receiver=edge.receiver, kind=edge.kind
            )
            for edge in meta.edge_types
        ),
    )


def files_of(meta: TablesMeta, tables: Path) -> GraphTables:
    """Where the tables are."""
    return GraphTables(
        nodes={name: tables / "nodes" / f"{name}.parquet" for name in meta.node_types},
        edges={edge.name: tables / "edges" / f"{edge.name}.parquet" for edge in meta.edge_types},
        texts={
            name: tables / "texts" / f"{name}.parquet"
            for name, node in meta.node_types.items()
            if node.has_texts
        },
    )
