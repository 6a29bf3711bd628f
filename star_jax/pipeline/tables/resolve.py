"""Translates the ids of a table to node indices; finds dangling ones, drops opted-out ones."""

from typing import NamedTuple

from star_jax.pipeline.tables.database import Database, quoted
from star_jax.pipeline.tables.nodes import ids_table, node_table


class End(NamedTuple):
    """A column that names a node: its name in the table and in the file, and the node's type."""

    column: str
    file_column: str
    node_type: str


def resolve(db: Database, table: str, file: str, ends: tuple[End, ...]) -> None:
    """Adds `<end>_idx` and `<end>_t` (creation time) and `excluded` (an end opted out).

    A dangling id is a problem, unless its node table could not be read.
    """
    select, joins, known = [], [], []
    for i, end in enumerate(ends):
        name = quoted(end.column)
        select.append(f"n{i}.idx AS {end.column}_idx, n{i}.t AS {end.column}_t")
        select.append(f"n{i}.id IS NULL AND x.{name} IS NOT NULL AS {end.column}_dangling")
        joins.append(f"LEFT JOIN {quoted(ids_table(end.node_type))} n{i} ON x.{name} = n{i}.id")
        known.append(f"(n{i}.id IS NOT NULL AND n{i}.idx IS NULL)")
    db.run(
        f"CREATE OR REPLACE TABLE {quoted(table)} AS SELECT x.*, {', '.join(select)}, "
        f"{' OR '.join(known)} AS excluded FROM {quoted(table)} x {' '.join(joins)}"
    )
    for end in ends:
        if node_table(end.node_type) not in db.broken:
            db.check(
                "dangling id",
                f"{file}:{end.file_column}",
                quoted(table),
                f"{end.column}_dangling",
                f"the id of a {end.node_type}",
                shown=quoted(end.column),
            )
        db.run(f"ALTER TABLE {quoted(table)} DROP COLUMN {end.column}_dangling")


def drop_excluded(db: Database, table: str, what: str) -> None:
    """Removes the rows of opted-out nodes and counts them."""
    count = db.value(f"SELECT count(*) FROM {quoted(table)} WHERE excluded")
    db.findings.count("excluded", f"{what} of opted-out nodes", count)
    db.run(f"DELETE FROM {quoted(table)} WHERE excluded")
