"""Where a build takes edges and texts from: what they are, then their rows in order."""

import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, final

import duckdb
import numpy as np

from star_jax.graph.build_edges import sorted_rows
from star_jax.graph.build_nodes import text_rows
from star_jax.graph.build_survey import EdgeSurvey, TextSurvey, survey_edges, survey_texts
from star_jax.graph.schema import GraphSchema
from star_jax.sorting import session, table_sql

Rows = Iterator[dict[str, np.ndarray]]


class GraphTables(NamedTuple):
    """Parquet files of `star import`, by node type and by edge key; not every type has texts."""

    nodes: dict[str, Path]
    edges: dict[str, Path]
    texts: dict[str, Path]


class TableSource(abc.ABC):
    """The edges and texts of a graph's tables. They are surveyed, then prepared, then read."""

    @abc.abstractmethod
    def edges(self, key: str) -> EdgeSurvey:
        """What the edges of a table are."""

    @abc.abstractmethod
    def texts(self, node_type: str) -> TextSurvey:
        """What the texts of a table are."""

    @abc.abstractmethod
    def prepare(self, text_kind: Mapping[str, str]) -> None:
        """Gets ready to give rows; the graph's folder has the creation times of all nodes by now.

        Args:
          text_kind: Node type -> kind of the texts that are asked for.
        """

    @abc.abstractmethod
    def sorted_edges(self, receiver: str) -> Rows:
        """The edges into a node type, as `build_edges.write_adjacency` takes them."""

    @abc.abstractmethod
    def sorted_texts(self, node_type: str) -> Rows:
        """The texts of a node type, as `build_nodes.write_texts` takes them."""


OpenSource = Callable[[Path, GraphSchema, GraphTables], AbstractContextManager[TableSource]]
"""Opens the tables for a graph in a folder."""


@final
class DatabaseSource(TableSource):
    """Tables that DuckDB reads and sorts out of core."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        output: Path,
        schema: GraphSchema,
        tables: GraphTables,
    ) -> None:
        self._connection, self._output = connection, output
        self._schema, self._tables = schema, tables
        self._text_kind: Mapping[str, str] = {}

    def edges(self, key: str) -> EdgeSurvey:
        """What the edges of a table are."""
        rows = table_sql(self._tables.edges[key])
        return survey_edges(self._connection, rows, key, self._schema)

    def texts(self, node_type: str) -> TextSurvey:
        """What the texts of a table are."""
        rows, num_nodes = self._tables.texts[node_type], self._schema.nodes[node_type].count
        return survey_texts(self._connection, table_sql(rows), num_nodes)

    def prepare(self, text_kind: Mapping[str, str]) -> None:
        """Takes note of the kinds."""
        self._text_kind = text_kind

    def sorted_edges(self, receiver: str) -> Rows:
        """Sorted when they are asked for."""
        tables = self._tables.edges
        return sorted_rows(self._connection, self._output, receiver, self._schema, tables)

    def sorted_texts(self, node_type: str) -> Rows:
        """Sorted when they are asked for."""
        kind = self._text_kind[node_type]
        return text_rows(self._connection, self._tables.texts[node_type], kind)


@contextmanager
def open_database(
    output: Path, schema: GraphSchema, tables: GraphTables, memory_limit_gib: float, threads: int
) -> Iterator[DatabaseSource]:
    """Opens the tables; what does not fit the memory goes to the output's disk."""
    with (
        TemporaryDirectory(dir=output, prefix=".scratch-") as scratch,
        session(Path(scratch), memory_limit_gib, threads, "sorting the graph") as connection,
    ):
        yield DatabaseSource(connection, output, schema, tables)
