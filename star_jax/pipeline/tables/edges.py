"""Stage 3: edges: their ends, times, weights, and the split from which each may be seen."""

from star_jax.pipeline.tables.database import Column, Database, quoted
from star_jax.pipeline.tables.events import event_table
from star_jax.pipeline.tables.read import SPLIT_CODES
from star_jax.pipeline.tables.resolve import End, drop_excluded, resolve
from star_jax.pipeline.tables.schema import Schema
from star_jax.pipeline.tables.sources import EdgeSource, EventSource
from star_jax.pipeline.tables.splits import Cuts, column_code, time_code

_BEFORE_THE_GRAPH = -1


def edge_table(name: str) -> str:
    """Name of the table: `sender_idx`, `receiver_idx`, `t`, `removed_t`, `weight`, `code`."""
    return f"edge {name}"


def load_edges(db: Database, source: EdgeSource, schema: Schema) -> None:
    """Reads and checks an edge source."""
    columns = [
        Column(source.sender_id, "sender", "id", True),
        Column(source.receiver_id, "receiver", "id", True),
    ]
    if source.time is not None:
        columns.append(Column(source.time, "t", "time", False))
    if source.removed_time is not None:
        columns.append(Column(source.removed_time, "removed_t", "time", False))
    if source.weight is not None:
        columns.append(Column(source.weight, "weight", "number", True))
    if source.split is not None:
        columns.append(Column(source.split, "split", "id", False))
    table = edge_table(source.name)
    db.load(table, source.file, columns)
    have = {column.name for column in columns}
    for name, sql_type in (("t", "BIGINT"), ("removed_t", "BIGINT"), ("split", "VARCHAR")):
        if name not in have:
            db.run(f"ALTER TABLE {quoted(table)} ADD COLUMN {name} {sql_type}")
    if source.weight is None:
        db.run(f"ALTER TABLE {quoted(table)} ADD COLUMN weight DOUBLE DEFAULT 1")
    _check(db, schema, source, table)
    ends = (
        End("sender", source.sender_id, source.sender),
        End("receiver", source.receiver_id, source.receiver),
    )
    resolve(db, table, source.file, ends)
    drop_excluded(db, table, f"{source.name} edges")


def _check(db: Database, schema: Schema, source: EdgeSource, table: str) -> None:
    name = quoted(table)
    if source.weight is not None:
        where = f"{source.file}:{source.weight}"
        db.check("negative weight", where, name, "weight < 0", "0 or more", shown="weight")
    if source.removed_time is not None:
        where = f"{source.file}:{source.removed_time}"
        needed = "a time at or after the edge's own"
        db.check("removed before created", where, name, "removed_t < t", needed)
    again = (
        '(SELECT "row", row_number() OVER (PARTITION BY sender, receiver, t '
        f'ORDER BY "row") AS n FROM {name} WHERE sender IS NOT NULL AND receiver IS NOT NULL)'
    )
    needed = "one row per sender, receiver and time (--fix removes exact copies)"
    db.check("duplicate edge", source.file, again, "n > 1", needed)
    if source.split is not None:
        names = ", ".join(schema.split_names)
        db.check(
            "unknown split",
            f"{source.file}:{source.split}",
            name,
            f"split IS NOT NULL AND {column_code(schema, 'split')} IS NULL",
            f"one of {names}, or null where nothing is known",
            shown="split",
        )


def finish_edges(db: Database, schema: Schema, cuts: Cuts | None) -> None:
    """Gives every edge the code of its split and drops times that say nothing of their own."""
    for source in schema.edges:
        table = quoted(edge_table(source.name))
        if source.kind == "attribute":
            _drop_repeated_times(db, schema, source)
        if source.kind == "interaction":
            _split_interactions(db, schema, source, cuts)
        elif source.split is not None:
            nulls = db.value(f"SELECT count(*) FROM {table} WHERE split IS NULL")
            db.findings.count("unknown", f"splits in {source.file}: visible from all", nulls)
            code = f"coalesce({column_code(schema, 'split')}, 0)"
            db.run(f"CREATE OR REPLACE TABLE {table} AS SELECT *, {code} AS code FROM {table}")
        else:
            db.run(f"ALTER TABLE {table} ADD COLUMN code INTEGER DEFAULT 0")
    for k, source in enumerate(schema.events):
        for made in source.edges:
            name = f"{source.sender}__{made.relation}__{source.receiver}"
            actions = ", ".join("'" + a.replace("'", "''") + "'" for a in made.actions)
            db.run(
                f'CREATE TABLE {quoted(edge_table(name))} AS SELECT "row", sender_idx, '
                "receiver_idx, t, CAST(NULL AS BIGINT) AS removed_t, 1.0 AS weight, code "
                f"FROM {quoted(event_table(k))} WHERE action IN ({actions}) AND code >= 0"
            )


def _drop_repeated_times(db: Database, schema: Schema, source: EdgeSource) -> None:
    """An attribute as old as its node needs no time: the node's own decides whether it is seen.

    With it, a posting would lose its own attributes at its first event. The creation time of a
    node that acts may be that of its first act, so there the edge's time stays.
    """
    table = quoted(edge_table(source.name))
    for end, node_type in (("sender", source.sender), ("receiver", source.receiver)):
        if node_type in schema.event_senders:
            continue
        timed = db.value(f"SELECT count(*) FROM {table} WHERE t IS NOT NULL")
        same = db.value(f"SELECT count(*) FROM {table} WHERE t = {end}_t")
        if timed and timed == same:
            db.run(f"UPDATE {table} SET t = NULL")
            db.findings.note(
                f"{source.name}: its times repeat the creation times of {node_type}, which decide"
            )


def _split_interactions(
    db: Database, schema: Schema, source: EdgeSource, cuts: Cuts | None
) -> None:
    """The split that an edge names, else of the event it repeats, else of its time.

    Where there is none of these the schema says it, or the edge is refused.
    """
    table = quoted(edge_table(source.name))
    repeats = [
        _repeated(k, events, source)
        for k, events in enumerate(schema.events)
        if {events.sender, events.receiver} == {source.sender, source.receiver}
    ]
    by_time = time_code(cuts, "x.t") if cuts is not None else "NULL"
    event = "NULL"
    join = ""
    if repeats:
        join = (
            f'LEFT JOIN (SELECT "row", max(code) AS code FROM ({" UNION ALL ".join(repeats)}) '
            'GROUP BY "row") e ON e."row" = x."row"'
        )
        event = "e.code"
    own = "NULL" if source.split is None else column_code(schema, "split")
    otherwise = SPLIT_CODES[source.visible_from or "test"]
    db.run(
        f"CREATE OR REPLACE TABLE {table} AS SELECT x.*, "
        f"CAST(coalesce({own}, {event}, {by_time}, {otherwise}) AS INTEGER) AS code, "
        f"coalesce({own}, {event}, {by_time}) IS NULL AS unplaced FROM {table} x {join}"
    )
    if source.visible_from is None:
        needed = (
            f"{'a split column' if cuts is None else 'a time in every row, a split column'}, or "
            f"visible_from in the schema's {source.name}: without it nothing tells which split "
            "may see these interactions"
        )
        db.check("unplaced interaction", source.file, table, "unplaced", needed)
    elif unplaced := db.value(f"SELECT count(*) FROM {table} WHERE unplaced"):
        db.findings.warn(
            f"{source.name}: {unplaced} interactions have no split, no event and no cut by time; "
            f"as the schema says, their split is {source.visible_from}"
        )
    outside = db.value(f"SELECT count(*) FROM {table} WHERE code = {_BEFORE_THE_GRAPH}")
    db.findings.count("excluded", f"{source.name} edges outside the windows", outside)
    db.run(f"DELETE FROM {table} WHERE code = {_BEFORE_THE_GRAPH}")


def _repeated(k: int, events: EventSource, source: EdgeSource) -> str:
    """SQL: row of every edge that repeats an event of source k, and the event's code."""
    first, second = "sender_idx", "receiver_idx"
    if (events.sender, events.receiver) != (source.sender, source.receiver):
        first, second = second, first
    return (
        f'SELECT x."row", v.code FROM {quoted(edge_table(source.name))} x '
        f"JOIN {quoted(event_table(k))} v ON x.sender_idx = v.{first} "
        f"AND x.receiver_idx = v.{second} AND (x.t = v.t OR x.t IS NULL OR v.t IS NULL)"
    )
