"""Builds the graph artefact from import's tables: adjacency, features, text versions, ids."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial, reduce
from pathlib import Path
from types import MappingProxyType

from star_jax import artefacts
from star_jax.config import InputError, to_json
from star_jax.graph.build_edges import AdjacencySizes, all_sizes, table_key, write_adjacency
from star_jax.graph.build_nodes import node_rows, statistics, write_nodes, write_texts
from star_jax.graph.build_source import GraphTables, OpenSource, TableSource, open_database
from star_jax.graph.build_survey import (
    NOTHING,
    EdgeSurvey,
    TextSurvey,
    check_edges,
    check_texts,
)
from star_jax.graph.schema import GraphSchema, NodeType
from star_jax.graph.store import GraphMeta
from star_jax.sorting import check_limits

_DAY_S = 86400.0
_AGES = 1000.0  # Without a natural unit, the training events span this many.
_PROFILE = "profile"
_log = logging.getLogger(__name__)


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
    opened: OpenSource | None = None,
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
      opened: What reads and sorts edges and texts. None: DuckDB, within the limits of `options`.

    Raises:
      InputError: A table contradicts the schema, or a limit is too low.
    """
    with (opened or _database(options))(output, schema, tables) as source:
        surveys = _surveys(source, schema, tables)
        whole = reduce(EdgeSurvey.joined, surveys.values(), NOTHING)
        dense_stats = {
            name: _build_nodes(output, tables.nodes[name], name, node, whole.last, like)
            for name, node in schema.nodes.items()
        }
        texts = {name: source.texts(name) for name in tables.texts}
        text_kind = _text_kinds(texts, tables, _kinds_of(like) if like else options.text_kinds)
        source.prepare(text_kind)
        for name, survey in texts.items():
            num_rows, num_nodes = survey.kinds.get(text_kind[name], 0), schema.nodes[name].count
            folder = output / "nodes" / name / "texts"
            write_texts(folder, num_nodes, num_rows, source.sorted_texts(name))
        sizes = all_sizes(
            _build_adjacency(output, name, schema, surveys, source, advance)
            for name in schema.nodes
        )
    meta = GraphMeta(
        version="",  # `finish` names it.
        schema=schema,
        time_unit=time_unit,
        age_unit=_age_unit(time_unit, whole, options, like),
        dense_stats=dense_stats,
        text_kind=text_kind,
        num_texts={name: survey.num_texts for name, survey in texts.items()},
        signals=dict(signals),
        lineage=(),
        **sizes._asdict(),
    )
    return finish(output, meta)


def _database(options: BuildOptions) -> OpenSource:
    return partial(
        open_database, memory_limit_gib=options.memory_limit_gib, threads=options.num_threads
    )


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


def _surveys(
    source: TableSource, schema: GraphSchema, tables: GraphTables
) -> dict[str, EdgeSurvey]:
    """Of every edge table; those of the schema are checked."""
    surveys = {key: source.edges(key) for key in tables.edges}
    for edge in schema.edges:
        check_edges(surveys[edge.key], tables.edges[edge.key], "run `star import`")
    return surveys


def _build_adjacency(
    output: Path,
    receiver: str,
    schema: GraphSchema,
    surveys: Mapping[str, EdgeSurvey],
    source: TableSource,
    advance: Callable[[int], None],
) -> AdjacencySizes:
    """Writes the edges into one node type."""
    found = [surveys[table_key(edge, schema)].contents for edge in schema.into(receiver)]
    rows = source.sorted_edges(receiver)
    return write_adjacency(output, receiver, schema, found, rows, advance)


def _kinds_of(like: GraphMeta) -> dict[str, str]:
    """The kind of the texts of every type that has some."""
    return {name: kind for name, kind in like.text_kind.items() if like.num_texts[name]}


def _age_unit(
    time_unit: str, edges: EdgeSurvey, options: BuildOptions, like: GraphMeta | None
) -> float:
    if like is not None:
        return like.age_unit
    train_span = 0 if edges.first is None or edges.last is None else edges.last - edges.first
    natural = _DAY_S if time_unit == "unix_s" else max(1.0, train_span / _AGES)
    return options.age_unit or natural


def _text_kinds(
    texts: Mapping[str, TextSurvey], tables: GraphTables, asked: Mapping[str, str]
) -> dict[str, str]:
    """The kind of every node type's texts that the graph reads; checks the texts too."""
    kinds = {name: _text_kind(name, survey, asked) for name, survey in texts.items()}
    for name, survey in texts.items():
        check_texts(survey, tables.texts[name])
    return kinds


def _text_kind(node_type: str, survey: TextSurvey, asked: Mapping[str, str]) -> str:
    kinds = sorted(survey.kinds, key=lambda kind: (-survey.kinds[kind], kind))
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
