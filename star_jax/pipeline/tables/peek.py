"""A first look at the files of a folder: their columns, and what is needed to guess a schema."""

from pathlib import Path

import duckdb

from star_jax.pipeline.tables.database import quoted
from star_jax.pipeline.tables.files import file_sql, reason
from star_jax.pipeline.tables.findings import Findings

_SUFFIXES = (".parquet", ".csv")


class Peek:
    """Answers questions about the files of one folder; a file is named without its suffix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.findings = Findings()
        self._con = duckdb.connect(":memory:")
        self._columns: dict[str, dict[str, str]] = {}

    def close(self) -> None:
        """Frees the connection."""
        self._con.close()

    def file(self, stem: str) -> str | None:
        """`stem` with the suffix that it has here; None if there is no such file."""
        names = [stem + suffix for suffix in _SUFFIXES if (self.folder / (stem + suffix)).is_file()]
        return names[0] if names else None

    def stems(self, folder: str) -> list[str]:
        """The tables in a subfolder, in order of name."""
        paths = (self.folder / folder).glob("*")
        return sorted({path.stem for path in paths if path.suffix in _SUFFIXES})

    def columns(self, stem: str) -> dict[str, str]:
        """Column -> SQL type; empty, and a problem, if the file cannot be read."""
        if stem not in self._columns:
            file = self.file(stem)
            assert file is not None
            try:
                rows = self._con.execute(
                    f"DESCRIBE SELECT * FROM {file_sql(self.folder / file)}"
                ).fetchall()
                self._columns[stem] = {name: kind for name, kind, *_ in rows if name != "row"}
            except duckdb.Error as error:
                needed = f"a whole file ({reason(error, self.folder)})"
                self.findings.problem("unreadable file", file, needed)
                self._columns[stem] = {}
        return self._columns[stem]

    def has(self, stem: str, *names: str) -> bool:
        """Whether the file is there and has all of these columns."""
        return self.file(stem) is not None and all(n in self.columns(stem) for n in names)

    def number(self, stem: str, expression: str, where: str = "true") -> float:
        """An aggregate over the rows of a file; 0 where it is null."""
        row = self._rows(f"SELECT {expression} FROM {self.sql(stem)} WHERE {where}")[0]
        return float(row[0] or 0)

    def values(self, stem: str, column: str) -> list[str]:
        """The distinct values of a column, nulls left out."""
        name = quoted(column)
        rows = self._rows(
            f"SELECT DISTINCT CAST({name} AS VARCHAR) AS v FROM {self.sql(stem)} "
            f"WHERE {name} IS NOT NULL ORDER BY v"
        )
        return [row[0] for row in rows]

    def shared(
        self, stem: str, columns: tuple[str, str], other: str, others: tuple[str, str]
    ) -> float:
        """Share of a file's rows whose two ids also stand in a row of another file."""
        a, b = (f"CAST(x.{quoted(column)} AS VARCHAR)" for column in columns)
        c, d = (f"CAST({quoted(column)} AS VARCHAR)" for column in others)
        rows = self._rows(
            f"SELECT avg(CAST(({a}, {b}) IN (SELECT ({c}, {d}) FROM {self.sql(other)}) AS DOUBLE)) "
            f"FROM {self.sql(stem)} x"
        )
        return float(rows[0][0] or 0)

    def sql(self, stem: str) -> str:
        """The file as an SQL relation."""
        file = self.file(stem)
        assert file is not None
        return file_sql(self.folder / file)

    def _rows(self, sql: str) -> list[tuple]:
        """A file that breaks off gives no row here; reading it whole says where and why."""
        try:
            return self._con.execute(sql).fetchall()
        except duckdb.Error:
            return [(None,)]
