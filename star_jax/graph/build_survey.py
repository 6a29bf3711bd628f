"""What tables hold, by one pass over all of their rows or over some that are joined later."""

import math
from pathlib import Path
from typing import NamedTuple

import duckdb

from star_jax.config import InputError
from star_jax.graph.schema import EdgeType, GraphSchema
from star_jax.sorting import one_row, table_sql

_BAD_WEIGHT = "weight IS NULL OR NOT isfinite(weight) OR weight < 0"
_PROBLEMS = (
    "a sender or receiver outside its nodes",
    "a split other than 0 to 3",
    "a weight that is no finite number of 0 or more",
)


class Contents(NamedTuple):
    """What the edges of one relation are; without any, the smallest weight is above all."""

    num_edges: int
    num_removed: int
    smallest: float  # Weight.
    largest: float

    @property
    def is_weighted(self) -> bool:
        """Whether edges are not all equally likely to be drawn by weight."""
        return self.num_edges > 0 and (self.smallest < self.largest or self.largest <= 0)

    def joined(self, other: "Contents") -> "Contents":
        """Of both together."""
        return Contents(
            self.num_edges + other.num_edges,
            self.num_removed + other.num_removed,
            min(self.smallest, other.smallest),
            max(self.largest, other.largest),
        )


NO_EDGES = Contents(0, 0, math.inf, -math.inf)


class EdgeSurvey(NamedTuple):
    """What a build must know of edges before it sorts them."""

    faults: tuple[int, ...]  # Edges with each of the problems that `check_edges` names.
    contents: Contents
    first: int | None  # Time of a training edge; None: none has one.
    last: int | None

    def joined(self, other: "EdgeSurvey") -> "EdgeSurvey":
        """Of both together."""
        firsts, lasts = (self.first, other.first), (self.last, other.last)
        return EdgeSurvey(
            tuple(a + b for a, b in zip(self.faults, other.faults, strict=True)),
            self.contents.joined(other.contents),
            min((t for t in firsts if t is not None), default=None),
            max((t for t in lasts if t is not None), default=None),
        )


NOTHING = EdgeSurvey((0,) * len(_PROBLEMS), NO_EDGES, None, None)


class TextSurvey(NamedTuple):
    """What a build must know of texts before it sorts them."""

    num_strays: int  # Texts that belong to no node.
    kinds: dict[str, int]  # How many there are of each.

    @property
    def num_texts(self) -> int:
        """Of all kinds."""
        return sum(self.kinds.values())

    def joined(self, other: "TextSurvey") -> "TextSurvey":
        """Of both together."""
        kinds = dict(self.kinds)
        for kind, count in other.kinds.items():
            kinds[kind] = kinds.get(kind, 0) + count
        return TextSurvey(self.num_strays + other.num_strays, kinds)


def survey_edges(
    connection: duckdb.DuckDBPyConnection, rows: str, key: str, schema: GraphSchema
) -> EdgeSurvey:
    """What edges are; ends are not looked at where the schema lacks them.

    Args:
      connection: Reads them.
      rows: Of the edge type, as a table expression.
      key: Of the edge type.
      schema: Of the graph.
    """
    edge = next((edge for edge in schema.edges if edge.key == key), None)
    tests = _tests(edge, schema) if edge else ("false",) * len(_PROBLEMS)
    faults = ", ".join(f"count(*) FILTER ({test})" for test in tests)
    found = one_row(
        connection,
        f"SELECT {faults}, {_CONTENTS}, min(t) FILTER (split = 1), max(t) FILTER (split = 1) "
        f"FROM {rows}",
    )
    return EdgeSurvey(found[: len(tests)], Contents(*found[len(tests) : -2]), *found[-2:])


def contents(connection: duckdb.DuckDBPyConnection, table: Path) -> Contents:
    """What the edges of a table are."""
    return Contents(*one_row(connection, f"SELECT {_CONTENTS} FROM {table_sql(table)}"))


_CONTENTS = (
    "count(*), count(removed_t), coalesce(min(weight), 'inf'), coalesce(max(weight), '-inf')"
)


def _tests(edge: EdgeType, schema: GraphSchema) -> tuple[str, ...]:
    """SQL that is true of edges with each of the problems."""
    ends = " OR ".join(
        f"{column} IS NULL OR {column} NOT BETWEEN 0 AND {schema.nodes[node_type].count - 1}"
        for column, node_type in (("sender", edge.sender), ("receiver", edge.receiver))
    )
    return ends, "split IS NULL OR split NOT BETWEEN 0 AND 3", _BAD_WEIGHT


def check_edges(survey: EdgeSurvey, table: Path, remedy: str) -> None:
    """Checks what the joins and the int32 indices rely on.

    Raises:
      InputError: An end, a split or a weight is out of range; ends with the remedy.
    """
    for count, problem in zip(survey.faults, _PROBLEMS, strict=True):
        if count:
            raise InputError(f"{table}: {count} edges have {problem}; {remedy}")


def survey_texts(connection: duckdb.DuckDBPyConnection, rows: str, num_nodes: int) -> TextSurvey:
    """What texts are.

    Args:
      connection: Reads them.
      rows: Of one node type, as a table expression.
      num_nodes: Of that type.
    """
    stray = f"entity IS NULL OR entity NOT BETWEEN 0 AND {num_nodes - 1}"
    found = connection.sql(
        f"SELECT kind, count(*), count(*) FILTER ({stray}) FROM {rows} GROUP BY kind"
    ).fetchall()
    strays = sum(num_strays for _, _, num_strays in found)
    return TextSurvey(strays, {kind: count for kind, count, _ in found})


def check_texts(survey: TextSurvey, table: Path) -> None:
    """Checks what the index of text versions relies on.

    Raises:
      InputError: A text belongs to no node.
    """
    if survey.num_strays:
        raise InputError(f"{table}: {survey.num_strays} texts belong to no node; run `star import`")
