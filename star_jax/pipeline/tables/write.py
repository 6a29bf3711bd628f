"""Writes the tables of an artefact from the checked database, streamed where they are large."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from star_jax.pipeline.tables.database import Database, quoted
from star_jax.pipeline.tables.edges import edge_table
from star_jax.pipeline.tables.nodes import node_table, public_ids
from star_jax.pipeline.tables.read import EdgeMeta, NodeMeta, PairTable, Ranking
from star_jax.pipeline.tables.schema import Schema
from star_jax.pipeline.tables.sources import NodeSource
from star_jax.pipeline.tables.texts import has_texts, text_table
from star_jax.shapes import NO_TIME

_COMPRESSION = "zstd"


def write_nodes(db: Database, schema: Schema, folder: Path) -> dict[str, NodeMeta]:
    """Writes nodes/ and vocab/."""
    return {source.type: _write_type(db, schema, source, folder) for source in schema.nodes}


def _write_type(db: Database, schema: Schema, source: NodeSource, folder: Path) -> NodeMeta:
    table = quoted(node_table(source.type))
    categorical = {c: _write_vocabulary(db, source, c, folder) for c in source.categorical}
    select, joins = ["n.idx", "n.t"], []
    for i, column in enumerate(source.categorical):
        select.append(f"CAST(coalesce(v{i}.code, 0) AS INTEGER) AS {quoted(f'cat_{column}')}")
        vocabulary = quoted(f"vocab {source.type} {column}")
        joins.append(f"LEFT JOIN {vocabulary} v{i} ON n.{quoted(f'cat_{column}')} = v{i}.value")
    for column in source.dense:
        name = quoted(f"dense_{column}")
        select.append(f"CAST(n.{name} AS FLOAT) AS {name}")
    select += [f"n.{quoted(f'cohort_{column}')}" for column in source.cohorts]
    rows = db.arrow(
        f"SELECT {', '.join(select)} FROM {table} n {' '.join(joins)} "
        "WHERE n.idx IS NOT NULL ORDER BY n.idx"
    )
    rows = rows.add_column(1, "id", public_ids(db, schema, source).cast(pa.string()))
    _write(rows, folder / "nodes" / f"{source.type}.parquet")
    count = len(rows)
    return NodeMeta(
        count=count,
        categorical=categorical,
        dense=list(source.dense),
        has_texts=has_texts(db, schema, source.type)
        and db.value(f"SELECT count(*) FROM {quoted(text_table(source.type))} WHERE text_id >= 0")
        > 0,
        has_time=rows["t"].null_count < count,
    )


def _write_vocabulary(db: Database, source: NodeSource, column: str, folder: Path) -> int:
    """Numbers values by the node they first occur at; returns how many codes there are."""
    name, value = quoted(f"vocab {source.type} {column}"), quoted(f"cat_{column}")
    db.run(
        f"CREATE TABLE {name} AS SELECT {value} AS value, "
        "CAST(row_number() OVER (ORDER BY min(coalesce(t, "
        f"{NO_TIME})), min(idx)) AS INTEGER) AS code FROM {quoted(node_table(source.type))} "
        f"WHERE idx IS NOT NULL AND {value} <> '' GROUP BY {value}"
    )
    rows = db.arrow(f"SELECT code, value FROM {name} ORDER BY code")
    _write(rows, folder / "vocab" / f"{source.type}.{column}.parquet")
    return len(rows) + 1


def write_edges(db: Database, schema: Schema, folder: Path) -> list[EdgeMeta]:
    """Writes edges/, ordered by time."""
    kinds: Mapping[str, str] = {source.name: source.kind for source in schema.edges}
    metas = []
    for name in schema.edge_names:
        table = quoted(edge_table(name))
        count = _stream(
            db,
            "SELECT sender_idx AS sender, receiver_idx AS receiver, t, removed_t, "
            "CAST(weight AS FLOAT) AS weight, CAST(code AS TINYINT) AS split "
            f'FROM {table} ORDER BY t NULLS FIRST, sender_idx, receiver_idx, "row"',
            folder / "edges" / f"{name}.parquet",
        )
        sender, relation, receiver = name.split("__")
        metas.append(
            EdgeMeta(
                sender=sender,
                relation=relation,
                receiver=receiver,
                kind="attribute" if kinds.get(name) == "attribute" else "interaction",
                count=count,
                has_time=db.value(f"SELECT count(t) FROM {table}") > 0,
                has_split=db.value(f"SELECT count(*) FROM {table} WHERE code > 0") > 0,
            )
        )
    return metas


def write_texts(db: Database, schema: Schema, folder: Path) -> None:
    """Writes texts/ of every node type that has any, in the order of their text_id."""
    for source in schema.nodes:
        if has_texts(db, schema, source.type):
            _stream(
                db,
                "SELECT text_id, idx AS entity, t, kind, text "
                f"FROM {quoted(text_table(source.type))} WHERE text_id >= 0 ORDER BY text_id",
                folder / "texts" / f"{source.type}.parquet",
            )


def write_pairs(pairs: PairTable, path: Path) -> None:
    """Writes the pairs of one task and split."""
    columns: dict[str, pa.Array] = {}
    for name, values in pairs._asdict().items():
        if name == "t":
            columns[name] = _nullable_times(values)
        elif name == "true_logit":
            columns[name] = pa.array(values, pa.float32(), mask=np.isnan(values))
        elif name in ("negative", "slice"):
            columns[name] = pa.array(values.tolist(), pa.string())
        else:
            columns[name] = pa.array(values)
    _write(pa.table(columns), path)


def write_ranking(ranking: Ranking, folder: Path, split: str) -> None:
    """Writes queries and candidates of one task and split."""
    lists = pa.list_(pa.int32())
    queries = {
        "sender": pa.array(ranking.sender),
        "t": _nullable_times(ranking.t),
        "sender_text": pa.array(ranking.sender_text),
        "sender_resume": pa.array(ranking.sender_resume),
        "relevant": pa.array(ranking.relevant, lists),
        "excluded": pa.array(ranking.excluded, lists),
    }
    _write(pa.table(queries), folder / f"{split}.parquet")
    candidates = {
        "receiver": pa.array(ranking.candidates),
        "receiver_text": pa.array(ranking.candidate_text),
    }
    _write(pa.table(candidates), folder / f"candidates_{split}.parquet")


def _nullable_times(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.int64(), mask=values == NO_TIME)


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression=_COMPRESSION)


def _stream(db: Database, sql: str, path: Path) -> int:
    """Writes the result of a query batch by batch; returns its number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    batches = db.batches(sql)
    with pq.ParquetWriter(path, batches.schema, compression=_COMPRESSION) as writer:
        for batch in batches:
            writer.write_batch(batch)
            count += batch.num_rows
    return count
