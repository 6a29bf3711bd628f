"""Stage 1: nodes, their consent, and the dense index that every other table is translated to."""

import hmac
import os
from pathlib import Path

import pyarrow as pa

from star_jax.config import InputError
from star_jax.pipeline.tables.database import Column, Database, quoted
from star_jax.pipeline.tables.schema import Schema
from star_jax.pipeline.tables.sources import NodeSource

_HASH_CHARS = 32
_MIN_KEY_BYTES = 16


def node_table(node_type: str) -> str:
    """Name of the table of nodes: `row`, `id`, `idx` (null where opted out), `t`, features."""
    return f"node {node_type}"


def ids_table(node_type: str) -> str:
    """Name of the table `id`, `idx`, `t`; ids are unique in it."""
    return f"ids {node_type}"


def stage_nodes(db: Database, schema: Schema) -> None:
    """Reads and checks every node source; opted-out nodes keep no index and so reach nothing."""
    for source in schema.nodes:
        _load(db, schema, source)
        table, where = node_table(source.type), f"{source.file}:{source.id}"
        _check_unique(db, table, "id", where)
        if source.public_id is not None:
            _check_unique(db, table, "public", f"{source.file}:{source.public_id}")
        keep = " AND ".join(
            [
                "id IS NOT NULL",
                *(["consent IS NOT DISTINCT FROM true"] if source.consent else []),
                *(["opt_out IS NOT DISTINCT FROM false"] if source.opt_out else []),
            ]
        )
        name = quoted(table)
        db.run(
            f"CREATE OR REPLACE TABLE {name} AS SELECT *, CASE WHEN {keep} THEN CAST("
            f'row_number() OVER (PARTITION BY {keep} ORDER BY "row") - 1 AS INTEGER) END AS idx '
            f"FROM {name}"
        )
        db.run(
            f"CREATE TABLE {quoted(ids_table(source.type))} AS SELECT id, idx, t FROM {name} "
            f'WHERE id IS NOT NULL QUALIFY row_number() OVER (PARTITION BY id ORDER BY "row") = 1'
        )
        opted_out = db.value(f"SELECT count(*) FROM {name} WHERE idx IS NULL")
        db.findings.count("excluded", f"{source.type} nodes opted out", opted_out)


def _load(db: Database, schema: Schema, source: NodeSource) -> None:
    columns = [Column(source.id, "id", "id", True)]
    if source.public_id is not None:
        columns.append(Column(source.public_id, "public", "id", True))
    if source.time is not None:
        columns.append(Column(source.time, "t", "time", False))
    for flag, name in ((source.consent, "consent"), (source.opt_out, "opt_out")):
        if flag is not None:
            columns.append(Column(flag, name, "flag", True))
    if source.text is not None:
        columns.append(Column(source.text, "text", "text", False))
    columns += [Column(c, f"cat_{c}", "category", False) for c in source.categorical]
    columns += [Column(c, f"dense_{c}", "number", False) for c in source.dense]
    columns += [Column(c, f"cohort_{c}", "category", False) for c in source.cohorts]
    people = source.type in schema.event_senders or bool(source.consent or source.opt_out)
    free_text = [source.text] if source.text is not None else []
    table = node_table(source.type)
    db.load(table, source.file, columns, free_text=free_text, names_personal=people)
    for name, sql_type in (("t", "BIGINT"), ("public", "VARCHAR"), ("text", "VARCHAR")):
        if name not in {column.name for column in columns}:
            db.run(f"ALTER TABLE {quoted(table)} ADD COLUMN {name} {sql_type}")


def _check_unique(db: Database, table: str, column: str, where: str) -> None:
    again = (
        f'(SELECT "row", {column}, row_number() OVER (PARTITION BY {column} ORDER BY "row") AS n '
        f"FROM {quoted(table)} WHERE {column} IS NOT NULL)"
    )
    needed = "one row per id (--fix removes exact copies)"
    db.check("duplicate id", where, again, "n > 1", needed, shown=column)


def public_ids(db: Database, schema: Schema, source: NodeSource) -> pa.Array:
    """The ids as they go into the artefacts, node by node."""
    table = quoted(node_table(source.type))
    ids = db.arrow(
        f"SELECT coalesce(public, id) AS id FROM {table} WHERE idx IS NOT NULL ORDER BY idx"
    )["id"].combine_chunks()
    if not source.deidentify or schema.deidentify is None:
        return ids
    key = _key(schema, db.data)
    prefix = source.type.encode() + b"\0"
    hashed = [
        hmac.digest(key, prefix + value.encode(), "sha256").hex()[:_HASH_CHARS]
        for value in ids.to_pylist()
    ]
    return pa.array(hashed, pa.string())


def _key(schema: Schema, data: Path) -> bytes:
    """The secret of the keyed hash.

    Raises:
      InputError: There is none, or it is too short to keep ids secret.
    """
    settings = schema.deidentify
    assert settings is not None
    if settings.key_env is not None:
        where, key = f"environment variable {settings.key_env}", os.environ.get(settings.key_env)
        secret = (key or "").encode()
    else:
        path = data / str(settings.key_file)
        where = f"deidentify.key_file {path}"
        if not path.is_file():
            raise InputError(f"{where} does not exist, needed a file with the secret key")
        secret = path.read_bytes().strip()
    if len(secret) < _MIN_KEY_BYTES:
        raise InputError(f"{where} has {len(secret)} bytes, needed at least {_MIN_KEY_BYTES}")
    return secret
