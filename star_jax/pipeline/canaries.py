"""Canaries: edges and texts that no training example may see, planted into a copy of the graph."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Int

from star_jax.graph.batches import Subgraph
from star_jax.graph.build_source import GraphTables
from star_jax.graph.schema import GraphSchema
from star_jax.sorting import table_sql

MARK = 54321.125  # Weight of planted edges; those of one example have its number added.
Kind = Literal["future", "later_split", "removed", "target"]
KINDS: tuple[Kind, ...] = ("future", "later_split", "removed", "target")
_PER_NODE = 2  # Of every relation.


class Times(NamedTuple):
    """The times of the audited examples, and one before all of them."""

    before: int
    first: int
    last: int


class Targets(NamedTuple):
    """Supervised pairs of the audited examples, and the edge types that hold them."""

    edge_keys: tuple[str, ...]
    sender: Int[np.ndarray, " B"]
    receiver: Int[np.ndarray, " B"]
    example: Int[np.ndarray, " B"]  # Numbers them across tasks, from 1 on.


def plant(
    kind: Kind,
    tables: GraphTables,
    schema: GraphSchema,
    folder: Path,
    *,
    near: Mapping[str, Int[np.ndarray, " _"]],
    times: Times,
    targets: list[Targets],
    seed: int,
) -> GraphTables:
    """Writes the tables anew, with canaries between nodes that the examples reach.

    `future`: edges from the last example's time on, of every relation, and every text from then on
    given to one of the nodes. `later_split`: early edges of the splits val and test. `removed`:
    edges that were gone before the first example. `target`: the supervised pairs once more, early.

    Args:
      kind: What is planted.
      tables: Those the graph was built from.
      schema: Its types.
      folder: Empty; takes the new tables.
      near: Node type -> nodes that edges are planted between.
      times: Of the examples.
      targets: Of the examples.
      seed: Of the ends.
    """
    rng = np.random.default_rng(seed)
    edges = dict(tables.edges)
    texts = dict(tables.texts)
    with duckdb.connect(":memory:") as connection:
        for edge in schema.edges:
            if kind == "target":
                planted = _targets([each for each in targets if edge.key in each.edge_keys], times)
            else:
                planted = _edges(kind, edge.sender, edge.receiver, near, times, rng)
            if planted is None or not planted.num_rows:
                continue
            edges[edge.key] = folder / f"{edge.key}.parquet"
            connection.register("planted", planted)
            _copy(
                connection,
                "SELECT sender, receiver, t, removed_t, weight, split "
                f"FROM {table_sql(tables.edges[edge.key])} UNION ALL BY NAME SELECT * FROM planted",
                edges[edge.key],
            )
            connection.unregister("planted")
        for name in tables.texts if kind == "future" else ():
            if len(near.get(name, ())):
                texts[name] = folder / f"{name}_texts.parquet"
                _copy(connection, _moved(tables.texts[name], near[name], times.last), texts[name])
    return GraphTables(tables.nodes, edges, texts)


def count(subgraph: Subgraph, example: int = 0) -> dict[str, int]:
    """Relation and hop -> planted edges that were sampled; only those with any.

    Args:
      subgraph: What was sampled.
      example: Counts the supervised pairs of this one alone; 0: what is nobody's.
    """
    mark = np.float32(MARK + example)
    found = {
        f"{key} at hop {hop + 1}": int((np.asarray(table.weight) == mark)[table.mask].sum())
        for hop, tables in enumerate(subgraph.hops)
        for key, table in tables.items()
    }
    return {name: number for name, number in found.items() if number}


def _edges(
    kind: Literal["future", "later_split", "removed"],
    sender: str,
    receiver: str,
    near: Mapping[str, Int[np.ndarray, " _"]],
    times: Times,
    rng: np.random.Generator,
) -> pa.Table | None:
    senders, receivers = near.get(sender), near.get(receiver)
    if senders is None or receivers is None or not len(senders) or not len(receivers):
        return None
    size = _PER_NODE * max(len(senders), len(receivers))
    ends = np.resize(senders, size), np.resize(receivers, size)
    early = np.full(size, times.before)
    options = {
        "future": (times.last + rng.integers(0, 3, size), None, np.full(size, 1)),
        "later_split": (early, None, rng.integers(2, 4, size)),
        "removed": (early, np.full(size, times.first), np.full(size, 1)),
    }
    return _table(rng.permutation(ends[0]), rng.permutation(ends[1]), *options[kind])


def _targets(pairs: list[Targets], times: Times) -> pa.Table | None:
    if not pairs:
        return None
    sender = np.concatenate([each.sender for each in pairs])
    receiver = np.concatenate([each.receiver for each in pairs])
    example = np.concatenate([each.example for each in pairs])
    early = np.full(len(sender), times.before)
    return _table(sender, receiver, early, None, np.full(len(sender), 1), MARK + example)


def _table(
    sender: np.ndarray,
    receiver: np.ndarray,
    t: np.ndarray,
    removed: np.ndarray | None,
    split: np.ndarray,
    weight: np.ndarray | float = MARK,
) -> pa.Table:
    size = len(sender)
    return pa.table(
        {
            "sender": pa.array(sender, pa.int32()),
            "receiver": pa.array(receiver, pa.int32()),
            "t": pa.array(t, pa.int64()),
            "removed_t": pa.nulls(size, pa.int64()) if removed is None else pa.array(removed),
            "weight": pa.array(np.broadcast_to(weight, size), pa.float32()),
            "split": pa.array(split, pa.int8()),
        }
    )


def _moved(table: Path, nodes: Int[np.ndarray, " _"], last: int) -> str:
    listed = ", ".join(map(str, nodes.tolist()))
    return (
        f"SELECT text_id, t, kind, CAST(CASE WHEN t >= {last} "
        f"THEN list_extract([{listed}], 1 + CAST(text_id % {len(nodes)} AS INTEGER)) "
        f"ELSE entity END AS INTEGER) AS entity FROM {table_sql(table)}"
    )


def _copy(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    escaped = str(path).replace("'", "''")
    connection.execute(f"COPY ({query}) TO '{escaped}' (FORMAT parquet)")
