"""Builds the graph artefact from import's tables: adjacency, features, text versions, ids."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import NamedTuple

import duckdb

from star_jax import artefacts
from star_jax.config import InputError, to_json
from star_jax.graph.build_edges import all_sizes, build_adjacency, check_edges
from star_jax.graph.build_nodes import build_texts, node_rows, statistics, write_nodes
from star_jax.graph.schema import GraphSchema, NodeType
from star_jax.graph.sorting import check_limits, one_row, session, table_sql
from star_jax.graph.store import GraphMeta

_DAY_S = 86400.0
_AGES = 1000.0  # Without a natural unit, the training events span this many.
_PROFILE = "profile"
_log = logging.getLogger(__name__)


class GraphTables(NamedTuple):
    """Parquet files of `star import`, by node type and by edge key; not every type has texts."""

    nodes: dict[str, Path]
    edges: dict[str, Path]
    texts: dict[str, Path]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build.

    Attributes:
      memory_limit_gib: For sorting; beyond it DuckDB spills to the output's disk.
      num_threads: For sorting.
      age_unit: Time that counts as 1 inside log(1 + age / unit), in the tables' unit. None: a
        day, or a thousandth of the span of training events where times are ordinals.
      text_kinds: Node type -> kind of its texts to read. Types with several kinds that are not
        named read "profile", or else the kind with the most texts.
    """

    memory_limit_gib: float = 2.0
    num_threads: int = 2
    age_unit: float | None = None
    text_kinds: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_limits(self.memory_limit_gib, self.num_threads)
        if self.age_unit is not None and not self.age_unit > 0:
            raise ValueError(f"age_unit is {self.age_unit}, needed above 0")


def build(
    output: Path,
    schema: GraphSchema,
    tables: GraphTables,
    time_unit: str,
    options: BuildOptions,
    advance: Callable[[int], None] = lambda _: None,
    like: GraphMeta | None = None,
    signals: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> GraphMeta:
    """Fills an empty folder with a graph and sets its meta data.

    Args:
      output: Inside `artefacts.writing`.
      schema: Node and edge types; the tables must have their columns.
      tables: Where they are; edges that the schema lacks count for when training ends.
      time_unit: "unix_s" or "ordinal".
      options: How to build.
      advance: Told how many edges were written; every edge is written in both directions.
      like: A graph whose statistics of dense columns, unit of age and kinds of texts are taken
        over, so that features mean to a model what they meant there. None: they are made anew.
      signals: Recorded in the meta data.

    Raises:
      InputError: A table contradicts the schema, or a limit is too low.
    """
    with _session(output, options) as connection:
        for edge in schema.edges:
            check_edges(connection, tables.edges[edge.key], edge, schema, "run `star import`")
        train_end, train_span = _training_times(connection, tables)
        dense_stats = {
            name: _build_nodes(output, tables.nodes[name], name, node, train_end, like)
            for name, node in schema.nodes.items()
        }
        asked = _kinds_of(like) if like else options.text_kinds
        text_kind = {
            name: _text_kind(connection, name, path, asked) for name, path in tables.texts.items()
        }
        num_texts = {
            name: build_texts(connection, output, name, schema, tables.texts[name], kind)
            for name, kind in text_kind.items()
        }
        sizes = all_sizes(
            build_adjacency(connection, output, name, schema, tables.edges, advance)
            for name in schema.nodes
        )
    meta = GraphMeta(
        version="",  # `finish` names it.
        schema=schema,
        time_unit=time_unit,
        age_unit=_age_unit(time_unit, train_span, options, like),
        dense_stats=dense_stats,
        text_kind=text_kind,
        num_texts=num_texts,
        signals=dict(signals),
        lineage=(),
        **sizes._asdict(),
    )
    return finish(output, meta)


@contextmanager
def _session(output: Path, options: BuildOptions) -> Iterator[duckdb.DuckDBPyConnection]:
    with (
        TemporaryDirectory(dir=output, prefix=".scratch-") as scratch,
        session(Path(scratch), options.memory_limit_gib, options.num_threads) as connection,
    ):
        yield connection


def finish(output: Path, meta: GraphMeta) -> GraphMeta:
    """Gives a folder whose arrays are complete its meta data, with the version of its content."""
    meta = dataclasses.replace(meta, version=_version(output, meta.schema))
    artefacts.set_meta(output, json.loads(to_json(meta)))
    return meta


def _build_nodes(
    output: Path,
    table: Path,
    name: str,
    node: NodeType,
    train_end: int | None,
    like: GraphMeta | None,
) -> dict[str, tuple[float, float]]:
    """Writes the nodes of one type; returns the statistics that were used."""
    stats = like.dense_stats[name] if like else statistics(table, node, train_end)
    write_nodes(output / "nodes" / name, node, node_rows(table, node, stats, first=0))
    _log.info("nodes %s: %d", name, node.count)
    return stats


def _training_times(
    connection: duckdb.DuckDBPyConnection, tables: GraphTables
) -> tuple[int | None, int]:
    """Time of the last training edge (None: none has a time) and the span from the first."""
    if not tables.edges:
        return None, 0
    times = " UNION ALL ".join(
        f"SELECT t FROM {table_sql(path)} WHERE split = 1" for path in tables.edges.values()
    )
    first, last = one_row(connection, f"SELECT min(t), max(t) FROM ({times})")
    return last, 0 if last is None else last - first


def _kinds_of(like: GraphMeta) -> dict[str, str]:
    """The kind of the texts of every type that has some."""
    return {name: kind for name, kind in like.text_kind.items() if like.num_texts[name]}


def _age_unit(
    time_unit: str, train_span: int, options: BuildOptions, like: GraphMeta | None
) -> float:
    if like is not None:
        return like.age_unit
    natural = _DAY_S if time_unit == "unix_s" else max(1.0, train_span / _AGES)
    return options.age_unit or natural


def _text_kind(
    connection: duckdb.DuckDBPyConnection, node_type: str, path: Path, asked: dict[str, str]
) -> str:
    counts = connection.sql(
        f"SELECT kind, count(*) AS n FROM {table_sql(path)} GROUP BY kind ORDER BY n DESC, kind"
    ).fetchall()
    kinds = [kind for kind, _ in counts]
    if node_type in asked:
        if asked[node_type] not in kinds:
            raise InputError(
                f"text_kinds.{node_type} is {asked[node_type]!r}, needed one of {sorted(kinds)}"
            )
        return asked[node_type]
    if not kinds:
        return node_type
    chosen = _PROFILE if _PROFILE in kinds else kinds[0]
    if len(kinds) > 1:
        _log.info("texts of %s: the graph reads kind %r of %s", node_type, chosen, sorted(kinds))
    return chosen


def _version(output: Path, schema: GraphSchema) -> str:
    """Digest of the schema and of every file."""
    sha = hashlib.sha256(to_json(schema).encode())
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        sha.update(f"{path.relative_to(output).as_posix()} {artefacts.file_digest(path)}".encode())
    return sha.hexdigest()
