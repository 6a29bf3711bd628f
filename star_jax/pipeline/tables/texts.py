"""Stage 2a: text versions, what pointers refer to, and which version held at a time."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from star_jax.pipeline.tables.database import Column, Database, quoted
from star_jax.pipeline.tables.files import literal
from star_jax.pipeline.tables.nodes import node_table
from star_jax.pipeline.tables.personal import E_MAIL
from star_jax.pipeline.tables.resolve import End, resolve
from star_jax.pipeline.tables.schema import Schema
from star_jax.pipeline.tables.sources import RESUME, TextSource
from star_jax.shapes import NO_TIME

NO_TEXT = -1
_NONE_POINTER = "-1"  # How a pointer column says: known to have no text.


def text_table(node_type: str) -> str:
    """Name of the table: `text_id` (-1 if empty), `idx`, `t`, `kind`, `text`, `pointer`."""
    return f"text {node_type}"


def _source_table(node_type: str, index: int | str) -> str:
    return f"text source {node_type} {index}"


class Pointer(NamedTuple):
    """A column with text pointers: its name in table and file, whose texts, resumes or others."""

    name: str
    file_column: str | None
    end: str
    node_type: str
    resume: bool


def stage_texts(db: Database, schema: Schema) -> None:
    """Reads and checks all texts; numbers those that are not empty in the order of their time."""
    for node in schema.nodes:
        parts = []
        sources = [source for source in schema.texts if source.node_type == node.type]
        for k, source in enumerate(sources):
            table = _source_table(node.type, k)
            _load(db, source, table)
            parts.append(_part(schema, source, table, k))
        if node.text is not None:
            kind = literal(node.text_kind or node.type)
            parts.append(
                f'SELECT {len(sources)} AS source, "row", CAST(NULL AS VARCHAR) AS pointer, idx, '
                f"CAST(NULL AS BIGINT) AS t, CAST(NULL AS BIGINT) AS since, {kind} AS kind, text "
                f"FROM {quoted(node_table(node.type))} "
                "WHERE idx IS NOT NULL AND length(trim(text)) > 0"
            )
        if parts:
            _number(db, node.type, " UNION ALL ".join(parts))


def _load(db: Database, source: TextSource, table: str) -> None:
    columns = [
        Column(source.entity, "entity", "id", True),
        Column(source.text, "text", "text", False),
    ]
    if source.title is not None:
        columns.append(Column(source.title, "title", "text", False))
    if source.time is not None:
        columns.append(Column(source.time, "t", "time", False))
    if source.id is not None:
        columns.append(Column(source.id, "pointer", "id", True))
    prose = [source.text, *([source.title] if source.title else [])]
    db.load(table, source.file, columns, free_text=prose)
    have = {column.name for column in columns}
    for name, sql_type in (("t", "BIGINT"), ("title", "VARCHAR"), ("pointer", "VARCHAR")):
        if name not in have:
            db.run(f"ALTER TABLE {quoted(table)} ADD COLUMN {name} {sql_type}")
    name = quoted(table)
    empty = "length(trim(coalesce(text, '') || coalesce(title, ''))) = 0"
    db.check("empty text", f"{source.file}:{source.text}", name, empty, "a text in every row")
    mails = db.value(f"SELECT count(*) FROM {name} WHERE regexp_matches(text, '{E_MAIL}')")
    db.findings.count("worth knowing", f"texts with an e-mail address in {source.file}", mails)
    if source.id is not None:
        again = (
            '(SELECT "row", pointer, row_number() OVER (PARTITION BY pointer ORDER BY "row") AS n '
            f"FROM {name} WHERE pointer IS NOT NULL)"
        )
        needed = "one row per text id (--fix removes exact copies)"
        where = f"{source.file}:{source.id}"
        db.check("duplicate id", where, again, "n > 1", needed, shown="pointer")
    again = (
        f'(SELECT "row", row_number() OVER (PARTITION BY entity, t ORDER BY "row") AS n '
        f"FROM {name} WHERE entity IS NOT NULL)"
    )
    needed = "one version per entity and time (--fix removes exact copies)"
    db.check("duplicate text", source.file, again, "n > 1", needed)
    resolve(db, table, source.file, (End("entity", source.entity, source.node_type),))
    count = db.value(f"SELECT count(*) FROM {name} WHERE excluded")
    db.findings.count("excluded", f"{source.file} texts of opted-out nodes", count)


def _part(schema: Schema, source: TextSource, table: str, index: int) -> str:
    """SQL: the versions of one source, opted-out entities left out."""
    t = "t"
    if source.node_type not in schema.event_senders:
        # The version that an entity is born with holds from its beginning; with a time of its own
        # it would be missing at the entity's first event.
        t = "CASE WHEN t = entity_t THEN NULL ELSE t END"
    text = (
        "CASE WHEN length(trim(coalesce(title, ''))) = 0 "
        "OR starts_with(lower(coalesce(text, '')), lower(title)) THEN coalesce(text, '') "
        "WHEN length(trim(coalesce(text, ''))) = 0 THEN title ELSE title || '. ' || text END"
    )
    return (
        f'SELECT {index} AS source, "row", pointer, entity_idx AS idx, {t} AS t, t AS since, '
        f"{literal(source.kind)} AS kind, {text} AS text "
        f"FROM {quoted(table)} WHERE entity_idx IS NOT NULL"
    )


def _number(db: Database, node_type: str, versions: str) -> None:
    db.run(
        f"CREATE TABLE {quoted(text_table(node_type))} AS SELECT *, "
        'row_number() OVER (ORDER BY since NULLS FIRST, source, "row") AS place, '
        "CAST(CASE WHEN length(trim(text)) = 0 THEN -1 ELSE row_number() OVER "
        '(PARTITION BY length(trim(text)) = 0 ORDER BY since NULLS FIRST, source, "row") - 1 END '
        f"AS INTEGER) AS text_id FROM ({versions})"
    )


def has_texts(db: Database, schema: Schema, node_type: str) -> bool:
    """Whether the type has a table of texts at all."""
    return schema.node(node_type).text is not None or any(
        source.node_type == node_type for source in schema.texts
    )


def resolve_pointers(db: Database, table: str, file: str, pointers: tuple[Pointer, ...]) -> None:
    """Turns pointer columns into text ids: null where none was given, -1 where it says "none"."""
    name = quoted(table)
    for pointer in pointers:
        column, found = quoted(pointer.name), f"{pointer.name}_id"
        if pointer.file_column is None:
            db.run(f"ALTER TABLE {name} ADD COLUMN {found} INTEGER")
            continue
        kind = "=" if pointer.resume else "<>"
        db.run(
            f"CREATE OR REPLACE TABLE {name} AS SELECT x.* EXCLUDE ({column}), "
            f"CASE WHEN x.{column} = '{_NONE_POINTER}' THEN {NO_TEXT} ELSE p.text_id END "
            f"AS {found}, x.{column} AS given, p.idx AS owner FROM {name} x "
            f"LEFT JOIN (SELECT pointer, text_id, idx FROM {quoted(text_table(pointer.node_type))} "
            f"WHERE kind {kind} '{RESUME}') p ON x.{column} = p.pointer"
        )
        where = f"{file}:{pointer.file_column}"
        prefix = _source_table(pointer.node_type, "")
        if any(broken.startswith(prefix) for broken in db.broken):
            db.run(f"CREATE OR REPLACE TABLE {name} AS SELECT * EXCLUDE (given, owner) FROM {name}")
            continue
        # Texts of an opted-out entity are gone already; its rows go next.
        dangling = f"given IS NOT NULL AND {found} IS NULL AND NOT excluded"
        needed = f"the id of a text of a {pointer.node_type}, -1 or null"
        db.check("dangling text pointer", where, name, dangling, needed, shown="given")
        foreign = f"owner IS NOT NULL AND owner <> {pointer.end}_idx"
        needed = f"a text of the row's own {pointer.node_type}"
        db.check("foreign text pointer", where, name, foreign, needed, shown="given")
        db.run(f"CREATE OR REPLACE TABLE {name} AS SELECT * EXCLUDE (given, owner) FROM {name}")


class Versions(NamedTuple):
    """Text versions of one type and role, ordered by (entity, time); empty ones have text_id -1."""

    entity: Int64[np.ndarray, " N"]
    t: Int64[np.ndarray, " N"]
    text_id: Int32[np.ndarray, " N"]


def versions(db: Database, schema: Schema, node_type: str, *, resume: bool) -> Versions:
    """The versions that a role can see; none when the type has no texts."""
    if not has_texts(db, schema, node_type):
        none = np.zeros(0, np.int64)
        return Versions(none, none, np.zeros(0, np.int32))
    kind = "=" if resume else "<>"
    rows = db.arrays(
        f"SELECT CAST(idx AS BIGINT) AS idx, t, text_id FROM {quoted(text_table(node_type))} "
        f"WHERE kind {kind} '{RESUME}' ORDER BY idx, t NULLS FIRST, place"
    )
    return Versions(rows["idx"], rows["t"], rows["text_id"].astype(np.int32))


def text_as_of(known: Versions, entity: np.ndarray, t: np.ndarray) -> Int32[np.ndarray, " B"]:
    """The last version strictly before `t` of each entity, -1 if there is none.

    Where `t` is NO_TIME nothing orders event and texts: the entity's first version counts.
    """
    if not len(known.entity):
        return np.full(len(entity), NO_TEXT, np.int32)
    times = np.unique(np.concatenate([known.t, t]))
    width = len(times) + 1
    keys = known.entity * width + np.searchsorted(times, known.t)
    asked = entity.astype(np.int64) * width + np.searchsorted(times, t)
    before = np.searchsorted(keys, asked, side="left") - 1
    first = np.searchsorted(known.entity, entity, side="left")
    place = np.where(t == NO_TIME, np.minimum(first, len(keys) - 1), np.maximum(before, 0))
    found = (known.entity[place] == entity) & ((before >= 0) | (t == NO_TIME))
    return np.where(found, known.text_id[place], NO_TEXT).astype(np.int32)
