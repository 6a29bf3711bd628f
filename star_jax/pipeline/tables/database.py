"""One DuckDB per import: every source becomes a table of typed, checked columns, out of core."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from star_jax.pipeline.tables.files import file_sql, reason
from star_jax.pipeline.tables.findings import Findings
from star_jax.pipeline.tables.personal import check_columns
from star_jax.shapes import NO_TIME
from star_jax.sorting import connect

ColumnKind = Literal["id", "category", "time", "number", "flag", "text"]

_NOTHING = "CAST(NULL AS"
NUM_EXAMPLES = 3  # Rows that a problem shows.
_BATCH_ROWS = 1 << 17
_BLANKS = "E' \\t\\r\\n'"
_NEEDED: dict[ColumnKind, str] = {
    "id": "strings or integers",
    "category": "strings, integers or booleans",
    "time": "whole numbers",
    "number": "finite numbers",
    "flag": "true/false or 1/0",
    "text": "strings",
}


class Column(NamedTuple):
    """A column to read: its name in the file and in the table, how to read it, null or not."""

    file_name: str
    name: str
    kind: ColumnKind
    required: bool


class Limits(NamedTuple):
    """What a database may take; beyond the memory it spills to disk, tables too."""

    memory_gib: float
    num_threads: int


class Database:
    """The tables of one import. A source that cannot be read leaves an empty table behind."""

    def __init__(
        self,
        data: Path,
        scratch: Path,
        findings: Findings,
        limits: Limits,
        *,
        unix_time: bool,
        personal_data: Sequence[str] = (),
        fix: bool = False,
        opens: Callable[[str], None] = lambda _: None,
        judged: Iterable[str] = (),
    ) -> None:
        """Opens an empty one.

        Args:
          data: Folder of the files.
          scratch: For what does not fit the memory.
          findings: Where to record.
          limits: Of memory and threads.
          unix_time: Times are unix seconds.
          personal_data: "file:column" of those that may be here.
          fix: Apply the repairs that leave no choice.
          opens: Told of every file before it is read.
          judged: Files that have been searched for personal data elsewhere.
        """
        self._opens = opens
        self.rows_of: dict[str, str] = {}  # File -> SQL of rows of it that are read, not all.
        self.columns_of: dict[str, list[str]] = {}  # Table -> columns of its file that were read.
        self.data = data
        self.findings = findings
        self.broken: set[str] = set()  # Tables whose rows are unknown: no check refers to them.
        self.time_columns: list[tuple[str, str, str]] = []  # Table, column, file:column.
        self._unix_time = unix_time
        self._personal_data = frozenset(personal_data)
        self._fix = fix
        self._seen_files: set[str] = set(judged)
        self._con = connect(scratch, *limits)
        # It believes Parquet's statistics, which leave NaN out, and so takes isnan() for false.
        self._con.execute("SET disabled_optimizers = 'statistics_propagation'")

    def close(self) -> None:
        """Frees the tables."""
        self._con.close()

    def run(self, sql: str) -> None:
        """Executes one statement."""
        self._con.execute(sql)

    def rows(self, sql: str) -> list[tuple]:
        """All rows of a query."""
        return self._con.execute(sql).fetchall()

    def value(self, sql: str) -> int:
        """The single integer that a query gives."""
        ((number,),) = self.rows(sql)  # All rows: an unfinished result blocks the connection.
        return int(number or 0)

    def arrow(self, sql: str) -> pa.Table:
        """The result as an Arrow table."""
        return self._con.sql(sql).to_arrow_table()

    def batches(self, sql: str) -> pa.RecordBatchReader:
        """The result as a stream of Arrow batches."""
        return self._con.sql(sql).to_arrow_reader(_BATCH_ROWS)

    def arrays(self, sql: str) -> dict[str, np.ndarray]:
        """The columns as arrays; a null integer is NO_TIME."""
        table = self.arrow(sql)
        return {name: _to_numpy(table[name]) for name in table.column_names}

    def add(self, name: str, columns: dict[str, np.ndarray]) -> None:
        """Makes a table of arrays."""
        arrow = pa.table(columns)
        self._con.register("_arrow", arrow)
        self.run(f"CREATE TABLE {quoted(name)} AS SELECT * FROM _arrow")
        self._con.unregister("_arrow")

    def check(
        self, kind: str, where: str, table: str, condition: str, needed: str, shown: str = ""
    ) -> int:
        """Records a problem if rows of `table` meet the condition; returns how many do.

        Args:
          kind: See `Problem`.
          where: See `Problem`.
          table: Any table or subquery that has a column `row`.
          condition: SQL over its columns.
          needed: See `Problem`.
          shown: Column to show with the first offending rows.
        """
        count = self.value(f"SELECT count(*) FROM {table} WHERE {condition}")
        if count:
            show = f", CAST({shown} AS VARCHAR)" if shown else ""
            first = self.rows(
                f'SELECT "row"{show} FROM {table} WHERE {condition} '
                f'ORDER BY "row" LIMIT {NUM_EXAMPLES}'
            )
            examples = [
                f"row {row[0]}" + (f" ({shown.strip(chr(34))} {row[1]!r})" if shown else "")
                for row in first
            ]
            self.findings.problem(kind, where, needed, count=count, examples=examples)
        return count

    def load(
        self,
        table: str,
        file: str,
        columns: Sequence[Column],
        *,
        free_text: Sequence[str] = (),
        names_personal: bool = False,
        unique_rows: bool = True,
    ) -> None:
        """Reads a source into a table with a column `row` (1-based) and the columns asked for.

        Args:
          table: Name of the new table.
          file: Path relative to the data folder.
          columns: What to read.
          free_text: File columns whose values are prose, which no pattern judges.
          names_personal: The rows are people or the like: a plain `name` is personal data here.
          unique_rows: `--fix` removes exact copies of a row.
        """
        self._opens(file)
        relation = self._open(file)
        types = self._describe(relation, file) if relation else None
        if types is None:
            self.broken.add(table)
            self._empty(table, columns)
            return
        if file not in self._seen_files:
            self._seen_files.add(file)
            check_columns(
                self._con,
                self.findings,
                relation,
                file,
                types,
                declared=self._personal_data,
                free_text=free_text,
                names=names_personal,
            )
        if not self._read(table, file, self.rows_of.get(file, relation), types, columns):
            self.broken.add(table)
            self._empty(table, columns)
            return
        self.columns_of[table] = [c.file_name for c in columns if c.file_name in types]
        self.time_columns += [
            (table, c.name, f"{file}:{c.file_name}") for c in columns if c.kind == "time"
        ]
        if self._fix and unique_rows:
            self._drop_copies(table, file, columns)
        if file not in self.rows_of and not self.value(f"SELECT count(*) FROM {quoted(table)}"):
            self.findings.problem("empty table", file, "at least one row")

    def _open(self, file: str) -> str:
        """SQL of the file with a column `row`, or nothing when there is no such file."""
        path = self.data / file
        if path.suffix not in (".parquet", ".csv"):
            self.findings.problem("unknown format", file, "a .parquet or .csv file")
            return ""
        if not path.is_file():
            self.findings.problem("missing file", file, f"the file {path}")
            return ""
        return file_sql(path)

    def _describe(self, relation: str, file: str) -> dict[str, str] | None:
        try:
            described = self.rows(f"DESCRIBE SELECT * FROM {relation}")
        except duckdb.Error as error:
            self._unreadable(file, error)
            return None
        return {name: kind for name, kind, *_ in described if name != "row"}

    def _unreadable(self, file: str, error: duckdb.Error) -> None:
        self.findings.problem("unreadable file", file, f"a whole file ({reason(error, self.data)})")

    def _read(
        self,
        table: str,
        file: str,
        relation: str,
        types: dict[str, str],
        columns: Sequence[Column],
    ) -> bool:
        """Creates the table and records what its cells do wrong; False if the file breaks off."""
        select = ['"row"']
        for column in columns:
            value, raw_null, blank = self._expressions(column, file, types)
            if column.required and value.startswith(_NOTHING):
                self.broken.add(table)
            select += [
                f"{value} AS {quoted(column.name)}",
                f"{raw_null} AS {quoted('null ' + column.name)}",
                f"{blank} AS {quoted('blank ' + column.name)}",
            ]
        name = quoted(table)
        try:
            self.run(f"CREATE TABLE {name} AS SELECT {', '.join(select)} FROM {relation}")
        except duckdb.OutOfMemoryException:
            raise  # The file is not to blame.
        except duckdb.Error as error:
            self._unreadable(file, error)
            return False
        for column in columns:
            self._check_cells(table, file, column, known=column.file_name in types)
            self.run(f"ALTER TABLE {name} DROP COLUMN {quoted('null ' + column.name)}")
            self.run(f"ALTER TABLE {name} DROP COLUMN {quoted('blank ' + column.name)}")
        return True

    def _check_cells(self, table: str, file: str, column: Column, *, known: bool) -> None:
        if not known:
            return
        name, where = quoted(table), f"{file}:{column.file_name}"
        value, is_null = quoted(column.name), quoted("null " + column.name)
        if column.required:
            self.check("null", where, name, is_null, "a value in every row")
        wrong = f"NOT {is_null} AND {value} IS NULL"
        self.check("wrong type", where, name, wrong, _NEEDED[column.kind])
        if column.kind == "time" and not column.required:
            count = self.value(f"SELECT count(*) FROM {name} WHERE {is_null}")
            self.findings.count("unknown", f"times (null or NaN) in {where}", count)
        blank = quoted("blank " + column.name)
        if self._fix:
            count = self.value(f"SELECT count(*) FROM {name} WHERE {blank}")
            self.findings.count("fixed", f"blanks around values in {where}", count)
        else:
            self.check("surrounding blanks", where, name, blank, "no blanks (--fix removes them)")

    def _expressions(
        self, column: Column, file: str, types: dict[str, str]
    ) -> tuple[str, str, str]:
        """SQL of the value, of "the cell is null", and of "has blanks around it"."""
        ref = quoted(column.file_name)
        nothing = f"{_NOTHING} {_SQL_TYPES[column.kind]})"
        if column.file_name not in types:
            needed = f"this column among {', '.join(types)}"
            self.findings.problem("missing column", f"{file}:{column.file_name}", needed)
            return nothing, "true", "false"
        family = _family(types[column.file_name])
        raw_null = f"({ref} IS NULL)"
        if family == "float":
            raw_null = f"({ref} IS NULL OR isnan(CAST({ref} AS DOUBLE)))"
        blank = "false"
        if family == "text" and column.kind == "id":
            bare = trimmed(ref)
            blank = f"coalesce({ref} <> {bare}, false)"
            ref = bare if self._fix else ref
        value = _cast(column.kind, family, ref, unix_time=self._unix_time)
        return value or nothing, raw_null, blank

    def _drop_copies(self, table: str, file: str, columns: Sequence[Column]) -> None:
        name = quoted(table)
        same = ", ".join(quoted(column.name) for column in columns)
        before = self.value(f"SELECT count(*) FROM {name}")
        self.run(
            f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM {name} "
            f'QUALIFY row_number() OVER (PARTITION BY {same} ORDER BY "row") = 1'
        )
        after = self.value(f"SELECT count(*) FROM {name}")
        self.findings.count("fixed", f"exact copies of rows in {file}", before - after)

    def _empty(self, table: str, columns: Sequence[Column]) -> None:
        typed = ", ".join(f"{quoted(c.name)} {_SQL_TYPES[c.kind]}" for c in columns)
        self.run(f'CREATE TABLE {quoted(table)} ("row" BIGINT, {typed})')


def quoted(name: str) -> str:
    """The name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def trimmed(value: str) -> str:
    """SQL: the string without blanks around it."""
    return f"trim({value}, {_BLANKS})"


_SQL_TYPES: dict[ColumnKind, str] = {
    "id": "VARCHAR",
    "category": "VARCHAR",
    "time": "BIGINT",
    "number": "DOUBLE",
    "flag": "BOOLEAN",
    "text": "VARCHAR",
}


def _family(sql_type: str) -> str:
    base = sql_type.split("(")[0].upper()
    if base.endswith("INT") or base in ("INTEGER", "UINTEGER"):
        return "int"
    if base in ("FLOAT", "DOUBLE", "DECIMAL"):
        return "float"
    if base.startswith(("TIMESTAMP", "DATE")):
        return "timestamp"
    return {"VARCHAR": "text", "BOOLEAN": "bool"}.get(base, "other")


def _cast(kind: ColumnKind, family: str, ref: str, *, unix_time: bool) -> str:
    """SQL that reads a cell, null where it cannot; empty when no cell of this type can be read."""
    casts: dict[tuple[str, str], str] = {
        ("id", "text"): ref,
        ("id", "int"): f"CAST({ref} AS VARCHAR)",
        ("category", "text"): ref,
        ("category", "int"): f"CAST({ref} AS VARCHAR)",
        ("category", "bool"): f"CAST({ref} AS VARCHAR)",
        ("text", "text"): ref,
        ("number", "int"): f"CAST({ref} AS DOUBLE)",
        ("number", "bool"): f"CAST({ref} AS DOUBLE)",
        ("number", "float"): _finite(f"CAST({ref} AS DOUBLE)"),
        ("number", "text"): _finite(f"TRY_CAST({ref} AS DOUBLE)"),
        ("flag", "bool"): ref,
        ("flag", "int"): f"CASE {ref} WHEN 0 THEN false WHEN 1 THEN true END",
        ("flag", "text"): f"CASE lower({ref}) WHEN 'false' THEN false WHEN '0' THEN false "
        "WHEN 'true' THEN true WHEN '1' THEN true END",
        ("time", "int"): f"TRY_CAST({ref} AS BIGINT)",
        ("time", "float"): f"CASE WHEN {ref} = floor({ref}) THEN TRY_CAST({ref} AS BIGINT) END",
        ("time", "text"): f"CASE WHEN regexp_full_match({ref}, '[+-]?[0-9]+(\\.0*)?') "
        f"THEN TRY_CAST(split_part({ref}, '.', 1) AS BIGINT) END",
    }
    if unix_time:
        casts["time", "timestamp"] = f"CAST(floor(epoch({ref})) AS BIGINT)"
    return casts.get((kind, family), "")


def _finite(value: str) -> str:
    return f"CASE WHEN isfinite({value}) THEN {value} END"


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_integer(column.type):
        filled = column.cast(pa.int64()).fill_null(NO_TIME) if column.null_count else column
        return filled.combine_chunks().to_numpy(zero_copy_only=False)
    return column.combine_chunks().to_numpy(zero_copy_only=False)
