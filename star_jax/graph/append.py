"""The next version of a graph: what is new merged into the arrays of the one before.

The tables that the graph was built from are not read again: every array is copied once, in order,
with the new rows woven in where a build from all tables together would have put them. The result
is the same to the byte as such a build with the statistics of the graph (`build`'s `like`).

Means and deviations of dense columns, the unit of age, vocabularies and kinds of texts stay those
of the graph: they are what features mean to a model trained on it. A build from tables makes them
anew; where they come out the same, which they do as long as nothing of the training time was
added, it makes the same bytes without being told to keep them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
from jaxtyping import Int

from star_jax.graph.additions import Additions, check_new_ids, check_new_texts
from star_jax.graph.build import finish
from star_jax.graph.build_edges import (
    AdjacencySizes,
    all_sizes,
    sorted_rows,
    write_adjacency,
)
from star_jax.graph.build_nodes import (
    NodeRows,
    ids_of,
    node_rows,
    text_rows,
    write_nodes,
    write_texts,
)
from star_jax.graph.build_survey import (
    NO_EDGES,
    Contents,
    check_edges,
    check_texts,
    contents,
    survey_edges,
    survey_texts,
)
from star_jax.graph.samplers.search import EdgeKeys, insertion_points, rows_between
from star_jax.graph.schema import GraphSchema
from star_jax.graph.store import NOT_REMOVED, Addition, Adjacency, GraphMeta, GraphStore
from star_jax.sorting import session, table_sql

_CHUNK = 1 << 18

Columns = dict[str, np.ndarray]


def append(
    output: Path,
    parent: GraphStore,
    additions: Additions,
    memory_limit_gib: float,
    num_threads: int,
    advance: Callable[[int], None] = lambda _: None,
) -> GraphMeta:
    """Fills an empty folder with a graph and what is added to it, and sets its meta data.

    Args:
      output: Inside `artefacts.writing`; may be about to replace the parent.
      parent: The graph to continue. It stays as it is.
      additions: What is new.
      memory_limit_gib: For sorting what is new.
      num_threads: For sorting.
      advance: Told how many edges were written; every edge is written in both directions.

    Raises:
      InputError: The additions contradict the graph: an end of an edge is no node, a node or a
        text is there already, a code is outside the vocabulary.
    """
    meta, tables, counts = parent.meta, additions.tables, additions.counts
    schema = _grown(meta.schema, counts["nodes"])
    with (
        TemporaryDirectory(dir=output, prefix=".scratch-") as scratch,
        session(Path(scratch), memory_limit_gib, num_threads, "sorting the graph") as connection,
    ):
        _check_ends(connection, tables.edges, schema)
        for name in schema.nodes:
            if name in tables.nodes:
                ids = parent.folder / "nodes" / name / "ids.parquet"
                check_new_ids(connection, tables.nodes[name], ids, name)
            chunks = _nodes(parent, name, schema, tables.nodes.get(name))
            write_nodes(output / "nodes" / name, schema.nodes[name], chunks)
        num_texts = {
            name: _append_texts(connection, output, parent, name, schema, tables.texts.get(name))
            for name in meta.num_texts
        }
        sizes = all_sizes(
            _append_edges(connection, output, parent, name, schema, tables.edges, advance)
            for name in schema.nodes
        )
    added = Addition(
        parent=meta.version,
        num_nodes=counts["nodes"],
        num_edges=counts["edges"],
        num_texts=counts["texts"],
        files=additions.digests,
    )
    grown = dataclasses.replace(
        meta, schema=schema, num_texts=num_texts, lineage=(*meta.lineage, added), **sizes._asdict()
    )
    return finish(output, grown)


def _grown(schema: GraphSchema, added: dict[str, int]) -> GraphSchema:
    nodes = {
        name: dataclasses.replace(node, count=node.count + added.get(name, 0))
        for name, node in schema.nodes.items()
    }
    return dataclasses.replace(schema, nodes=nodes)


def _check_ends(
    connection: duckdb.DuckDBPyConnection, edges: dict[str, Path], schema: GraphSchema
) -> None:
    for edge in schema.edges:
        if edge.key in edges:
            ends = " and ".join(
                f"{schema.nodes[name].count} of type {name}"
                for name in dict.fromkeys((edge.sender, edge.receiver))
            )
            remedy = f"the graph has nodes {ends} with those added"
            table = edges[edge.key]
            survey = survey_edges(connection, table_sql(table), edge.key, schema)
            check_edges(survey, table, remedy)


def _nodes(
    parent: GraphStore, name: str, schema: GraphSchema, table: Path | None
) -> Iterator[NodeRows]:
    """The nodes of one type, the old ones as they are."""
    first = 0
    for ids in ids_of(parent.folder / "nodes" / name):
        rows = slice(first, first + len(ids))
        arrays = (parent.node_time, parent.categorical, parent.dense)
        yield NodeRows(ids, *(array[name][rows] for array in arrays))
        first += len(ids)
    if table is not None:
        stats = parent.meta.dense_stats[name]
        yield from node_rows(table, schema.nodes[name], stats, first)


def _append_edges(
    connection: duckdb.DuckDBPyConnection,
    output: Path,
    parent: GraphStore,
    receiver: str,
    schema: GraphSchema,
    edges: dict[str, Path],
    advance: Callable[[int], None],
) -> AdjacencySizes:
    """Writes the edges into one node type, old and new."""
    old = parent.adjacency[receiver]
    found = contents_of(old)
    for j, relation in enumerate(schema.into(receiver)):
        for key in {relation.key, relation.reverse.key} & edges.keys():
            found[j] = found[j].joined(contents(connection, edges[key]))
    new = sorted_rows(connection, output, receiver, schema, edges)
    rows = _woven(old, new)
    return write_adjacency(output, receiver, schema, found, rows, advance)


def _append_texts(
    connection: duckdb.DuckDBPyConnection,
    output: Path,
    parent: GraphStore,
    name: str,
    schema: GraphSchema,
    table: Path | None,
) -> int:
    """Writes the text versions of one type, old and new; returns how many texts there are.

    A text version is to its node what an edge is: it is ordered by time, then by number.
    """
    old, kind = parent.text_versions[name], parent.meta.text_kind[name]
    num_texts, num_rows = parent.meta.num_texts[name], len(old.text)
    num_nodes = schema.nodes[name].count
    new: Iterable[Columns] = ()
    if table is not None:
        check_new_texts(connection, table, num_texts)
        survey = survey_texts(connection, table_sql(table), num_nodes)
        check_texts(survey, table)
        num_texts, num_rows = num_texts + survey.num_texts, num_rows + survey.kinds.get(kind, 0)
        new = map(_as_edges, text_rows(connection, table, kind))
    no_weights = np.zeros(len(old.text), np.float32)  # Never written, so no memory is taken.
    as_edges = Adjacency(
        bounds=np.stack([old.bounds[:-1], old.bounds[1:]], axis=1),
        sender=old.text,
        time=old.time,
        removed=np.zeros(0, np.int64),
        weight=no_weights,
        cumulative=np.zeros(0),
        flags=np.zeros(len(old.text), np.uint8),
    )
    rows = (
        {"entity": each["receiver"], "time": each["time"], "text": each["sender"]}
        for each in _woven(as_edges, new)
    )
    write_texts(output / "nodes" / name / "texts", num_nodes, num_rows, rows)
    return num_texts


def _as_edges(texts: Columns) -> Columns:
    num_rows = len(texts["entity"])
    return {
        "receiver": texts["entity"],
        "relation": np.zeros(num_rows, np.int32),
        "sender": texts["text"],
        "time": texts["time"],
        "removed": np.full(num_rows, NOT_REMOVED),
        "weight": np.zeros(num_rows, np.float32),
        "flags": np.zeros(num_rows, np.uint8),
    }


def contents_of(adjacency: Adjacency) -> list[Contents]:
    """What the edges of every relation are, as `contents` finds it in a table."""
    num_relations = adjacency.bounds.shape[1] - 1
    found = [NO_EDGES] * num_relations
    for columns in _as_rows(adjacency, 0, len(adjacency.sender)):
        for j in range(num_relations):
            own = columns["relation"] == j
            if own.any():
                weight = columns["weight"][own]
                removed = int(np.count_nonzero(columns["removed"][own] != NOT_REMOVED))
                found[j] = found[j].joined(
                    Contents(len(weight), removed, float(weight.min()), float(weight.max()))
                )
    return found


def _woven(old: Adjacency, new: Iterable[Columns]) -> Iterator[Columns]:
    """All edges in the order of the arrays.

    Args:
      old: Those of a graph.
      new: In that order, as `sorted_rows` gives them; receivers may lie beyond the graph's.
    """
    done = 0
    for columns in new:
        points = _points(old, columns)
        last = int(points[-1]) if len(points) else done
        taken = 0
        for piece in _as_rows(old, done, last):
            end = done + len(piece["time"])
            till = len(points) if end == last else int(np.searchsorted(points, end))
            yield _inserted(piece, points[taken:till] - done, columns, slice(taken, till))
            done, taken = end, till
        if taken < len(points):  # All of them go before the next old edge.
            yield {name: column[taken:] for name, column in columns.items()}
    yield from _as_rows(old, done, len(old.sender))


def _inserted(
    piece: Columns, points: Int[np.ndarray, " A"], columns: Columns, rows: slice
) -> Columns:
    """Old edges with the new ones of `rows` put before the old ones that `points` name."""
    return {name: np.insert(old, points, columns[name][rows]) for name, old in piece.items()}


def _points(old: Adjacency, columns: Columns) -> Int[np.ndarray, " A"]:
    """The old edge that each new one goes before."""
    num_nodes, num_edges = len(old.bounds), len(old.sender)
    receiver, relation = columns["receiver"], columns["relation"]
    known = receiver < num_nodes
    begin, end = np.full((2, len(receiver)), num_edges, np.int64)
    begin[known] = old.bounds[receiver[known], relation[known]]
    end[known] = old.bounds[receiver[known], relation[known] + 1]
    new = EdgeKeys(
        **{
            name: np.ascontiguousarray(columns[name], getattr(old, name).dtype)
            for name in EdgeKeys._fields
        }
    )
    return insertion_points(
        begin, end, new, EdgeKeys(old.time, old.sender, old.removed, old.weight, old.flags)
    )


def _as_rows(old: Adjacency, first: int, last: int) -> Iterator[Columns]:
    """Old edges first:last, some at a time, in the columns of `sorted_rows`."""
    for begin in range(first, last, _CHUNK):
        end = min(begin + _CHUNK, last)
        receiver, relation = rows_between(old.bounds, begin, end)
        removed = old.removed[begin:end]
        yield {
            "receiver": receiver,
            "relation": relation,
            "sender": old.sender[begin:end],
            "time": old.time[begin:end],
            "removed": removed if len(old.removed) else np.full(end - begin, NOT_REMOVED),
            "weight": old.weight[begin:end],
            "flags": old.flags[begin:end],
        }
