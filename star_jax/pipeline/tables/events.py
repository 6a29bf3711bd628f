"""Stage 2b: events: actions, times, the split of each, and the texts they point to."""

from collections.abc import Sequence

import numpy as np

from star_jax.pipeline.tables.database import Column, Database, quoted
from star_jax.pipeline.tables.files import literal
from star_jax.pipeline.tables.resolve import End, drop_excluded, resolve
from star_jax.pipeline.tables.schema import Schema, SplitColumn
from star_jax.pipeline.tables.sources import EventSource
from star_jax.pipeline.tables.splits import Cuts, column_code, find_cuts, time_code
from star_jax.pipeline.tables.texts import Pointer, resolve_pointers


def event_table(index: int) -> str:
    """Name of the table: `sender_idx`, `receiver_idx`, `t`, `action`, `session`, texts, `code`."""
    return f"event {index}"


def load_events(db: Database, index: int, schema: Schema) -> None:
    """Reads and checks an event source."""
    by_column = isinstance(schema.split, SplitColumn)
    source, table = schema.events[index], event_table(index)
    _load(db, source, table, by_column=by_column)
    _check(db, schema, source, table, by_column=by_column)
    ends = (
        End("sender", source.sender_id, source.sender),
        End("receiver", source.receiver_id, source.receiver),
    )
    resolve(db, table, source.file, ends)
    if source.time is not None:
        needed = f"a time at or after the creation of the {source.receiver}"
        where = f"{source.file}:{source.time}"
        db.check("early event", where, quoted(table), "t < receiver_t", needed)
    pointers = (
        Pointer("sender_text", source.sender_text, "sender", source.sender, False),
        Pointer("sender_resume", source.sender_resume, "sender", source.sender, True),
        Pointer("receiver_text", source.receiver_text, "receiver", source.receiver, False),
    )
    resolve_pointers(db, table, source.file, pointers)
    drop_excluded(db, table, f"{source.file} events")


def split_events(db: Database, schema: Schema) -> Cuts | None:
    """Gives all events the code of their split; returns the cuts in time."""
    times = [
        db.arrays(f"SELECT t FROM {quoted(event_table(k))} WHERE t IS NOT NULL")["t"]
        for k in range(len(schema.events))
    ]
    cuts = find_cuts(schema, np.concatenate(times).astype(np.int64), db.findings)
    for k, source in enumerate(schema.events):
        _add_codes(db, schema, source, event_table(k), cuts)
    return cuts


def _load(db: Database, source: EventSource, table: str, *, by_column: bool) -> None:
    columns = [
        Column(source.sender_id, "sender", "id", True),
        Column(source.receiver_id, "receiver", "id", True),
    ]
    if source.action is not None:
        columns.append(Column(source.action, "action", "id", True))
    if source.time is not None:
        columns.append(Column(source.time, "t", "time", not by_column))
    if by_column and source.split is not None:
        columns.append(Column(source.split, "split", "id", True))
    columns += [
        Column(file_name, name, "id", False)
        for file_name, name in (
            (source.session, "session"),
            (source.sender_text, "sender_text"),
            (source.sender_resume, "sender_resume"),
            (source.receiver_text, "receiver_text"),
        )
        if file_name is not None
    ]
    db.load(table, source.file, columns)
    have = {column.name for column in columns}
    for name, sql_type in (
        ("t", "BIGINT"),
        ("split", "VARCHAR"),
        ("session", "VARCHAR"),
        ("action", "VARCHAR DEFAULT 'event'"),
    ):
        if name not in have:
            db.run(f"ALTER TABLE {quoted(table)} ADD COLUMN {name} {sql_type}")


def _check(
    db: Database, schema: Schema, source: EventSource, table: str, *, by_column: bool
) -> None:
    name = quoted(table)
    known = known_actions(schema, source)
    actions = ", ".join(literal(action) for action in known)
    db.check(
        "unknown action",
        f"{source.file}:{source.action}",
        name,
        f"action NOT IN ({actions})",
        f"one of {', '.join(known)}",
        shown="action",
    )
    again = (
        '(SELECT "row", row_number() OVER (PARTITION BY sender, receiver, t, action '
        f'ORDER BY "row") AS n FROM {name} WHERE sender IS NOT NULL AND receiver IS NOT NULL)'
    )
    needed = "one row per sender, receiver, time and action (--fix removes exact copies)"
    db.check("duplicate event", source.file, again, "n > 1", needed)
    if by_column and source.split is not None:
        db.check(
            "unknown split",
            f"{source.file}:{source.split}",
            name,
            f"split IS NOT NULL AND {column_code(schema, 'split')} IS NULL",
            f"one of {', '.join(schema.split_names)}",
            shown="split",
        )


def known_actions(schema: Schema, source: EventSource) -> list[str]:
    """Actions that the schema has a use for, or says to ignore."""
    used: Sequence[str] = [
        action
        for task in schema.tasks
        if (task.sender, task.receiver) == (source.sender, source.receiver)
        for action in task.labels
    ]
    made = [action for edges in source.edges for action in edges.actions]
    return sorted({*used, *made, *source.ignored_actions})


def _add_codes(
    db: Database, schema: Schema, source: EventSource, table: str, cuts: Cuts | None
) -> None:
    code = column_code(schema, "split") if cuts is None else time_code(cuts, "t")
    db.run(
        f"CREATE OR REPLACE TABLE {quoted(table)} AS "
        f"SELECT *, CAST({code} AS INTEGER) AS code FROM {quoted(table)}"
    )
    outside = db.value(f"SELECT count(*) FROM {quoted(table)} WHERE code = -1")
    db.findings.count("excluded", f"{source.file} events outside the windows", outside)
