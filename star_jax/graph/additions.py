"""What a folder of additions to a graph holds, checked against the graph that it continues.

The layout is that of `star import`, with what is new alone:

    nodes/<type>.parquet                       idx, id, t, cat_<column>, dense_<column>
    edges/<sender>__<relation>__<receiver>.parquet
                                               sender, receiver, t, removed_t, weight, split
    texts/<type>.parquet                       text_id, entity, t, kind, text

Every folder and file may be absent. New nodes go on counting where the graph ends, in `idx` and in
`text_id`, and edges name old and new nodes alike by index. Categories are codes of the vocabulary
that the graph was built with; a value that it does not know has the code 0.
"""

from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow.parquet as pq

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.graph.build_source import GraphTables
from star_jax.graph.store import GraphMeta
from star_jax.sorting import one_row, table_sql

_PARTS = ("nodes", "edges", "texts")


class Additions(NamedTuple):
    """The tables of a folder and how many rows each has."""

    tables: GraphTables
    counts: dict[str, dict[str, int]]  # By part and name.
    digests: dict[str, str]  # By file, relative to the folder.


def read_additions(folder: Path, meta: GraphMeta) -> Additions:
    """Finds the tables of a folder.

    Raises:
      InputError: There are none, the graph has no such type, or holds these very files already.
    """
    if not folder.is_dir():
        raise InputError(f"additions {folder} does not exist, needed a folder with tables")
    known = {
        "nodes": tuple(meta.schema.nodes),
        "edges": tuple(edge.key for edge in meta.schema.edges),
        "texts": tuple(name for name, count in meta.num_texts.items() if count),
    }
    found: dict[str, dict[str, Path]] = {part: {} for part in _PARTS}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        part = path.parent.name
        if path.parent.parent != folder or part not in _PARTS or path.suffix != ".parquet":
            raise InputError(
                f"{path} is no table of additions, needed {'/, '.join(_PARTS)}/*.parquet"
            )
        if path.stem not in known[part]:
            raise InputError(
                f"{path}: the graph has no {part} of {path.stem!r}, needed one of "
                f"{sorted(known[part])}; a new type needs `star build-graph`"
            )
        found[part][path.stem] = path
    counts = {p: {name: _num_rows(path) for name, path in found[p].items()} for p in _PARTS}
    if not any(n for each in counts.values() for n in each.values()):
        raise InputError(f"additions {folder} has no rows, needed some in {'/, '.join(_PARTS)}/")
    digests = {
        path.relative_to(folder).as_posix(): artefacts.file_digest(path)
        for each in found.values()
        for path in each.values()
    }
    _check_not_added(folder, found, counts, digests, meta)
    return Additions(GraphTables(**found), counts, digests)


def check_new_ids(
    connection: duckdb.DuckDBPyConnection, table: Path, ids: Path, node_type: str
) -> None:
    """Checks that new nodes are new.

    Args:
      connection: Compares them.
      table: The new nodes.
      ids: The ids of the graph's nodes.
      node_type: Of both.

    Raises:
      InputError: An id is there twice or in the graph already.
    """
    again = (
        f"SELECT id FROM {table_sql(table)} GROUP BY id HAVING count(*) > 1 UNION ALL "
        f"SELECT n.id FROM {table_sql(table)} n JOIN {table_sql(ids)} o ON n.id = o.id"
    )
    count, first = one_row(connection, f"SELECT count(*), min(id) FROM ({again})")
    if count:
        raise InputError(
            f"{table}: {count} ids of {node_type} are there already, {first!r} the first of them, "
            "needed new ones: a node that is in the graph keeps the features it has"
        )


def check_new_texts(connection: duckdb.DuckDBPyConnection, table: Path, num_texts: int) -> None:
    """Checks that new texts go on counting where the graph's end.

    Raises:
      InputError: An id is missing, there twice, or that of a text the graph has.
    """
    count, distinct, low, high = one_row(
        connection,
        "SELECT count(text_id), count(DISTINCT text_id), min(text_id), max(text_id) "
        f"FROM {table_sql(table)}",
    )
    (rows,) = one_row(connection, f"SELECT count(*) FROM {table_sql(table)}")
    end = num_texts + rows - 1
    if rows and (rows, rows, num_texts, end) != (count, distinct, low, high):
        raise InputError(
            f"{table}: text_id ranges over [{low}, {high}] in {rows} rows, needed every number "
            f"from {num_texts}, where the graph's texts end, to {end}"
        )


def _check_not_added(
    folder: Path,
    found: dict[str, dict[str, Path]],
    counts: dict[str, dict[str, int]],
    digests: dict[str, str],
    meta: GraphMeta,
) -> None:
    """Refuses files that the graph has: to run a command twice must not double its edges."""
    for addition in meta.lineage:
        for part, files in found.items():
            for name, path in files.items():
                digest = digests[path.relative_to(folder).as_posix()]
                if counts[part][name] and digest in addition.files.values():
                    raise InputError(
                        f"{path} is in the graph already: it was added to version "
                        f"{addition.parent[:12]}"
                    )


def _num_rows(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError.
        raise InputError(f"{path} is no Parquet file: {error}") from error
