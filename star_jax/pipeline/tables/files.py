"""Parquet and CSV files as SQL, read strictly, and what DuckDB says of those that are damaged."""

import csv
import itertools
from pathlib import Path

import duckdb

_DELIMITERS = ",;\t|"
_HEADER_BYTES = 1 << 16


def file_sql(path: Path) -> str:
    """The rows of a Parquet or CSV file, numbered from 1 in `row`; every CSV cell is a string.

    A CSV file is UTF-8 and has one header line, the same number of cells in every line, and double
    quotes around cells with the delimiter of its header in them.
    """
    name = literal(str(path))
    if path.suffix == ".parquet":
        read = f"read_parquet({name}, file_row_number = true)"
        return f'(SELECT * EXCLUDE (file_row_number), file_row_number + 1 AS "row" FROM {read})'
    delimiter, columns = _header(path)
    options = (
        "auto_detect = false, header = true, strict_mode = true, null_padding = false, "
        f"ignore_errors = false, delim = {literal(delimiter)}, quote = '\"', escape = '\"', "
        f"columns = {{{', '.join(f'{literal(column)}: {_TEXT}' for column in columns)}}}"
    )
    return f'(SELECT *, row_number() OVER () AS "row" FROM read_csv({name}, {options}))'


def reason(error: duckdb.Error, folder: Path) -> str:
    """What is wrong with a file, in one line, without the content of its cells."""
    lines = str(error).replace(f"{folder}/", "").splitlines()
    told = [line for line in lines[1:] if line.startswith(_TELLING)]
    return " ".join([lines[0], *told])


def literal(value: str) -> str:
    """The string as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


_TEXT = "'VARCHAR'"
_TELLING = ("Expected Number of Columns", "Invalid unicode", "Value with unterminated quote")


def _header(path: Path) -> tuple[str, list[str]]:
    """The delimiter that the first line has most of, and the names in it."""
    with path.open("rb") as file:
        line = file.readline(_HEADER_BYTES).decode("utf-8-sig", errors="replace")
    line = line.rstrip("\n").split("\r")[0]
    delimiter = max(_DELIMITERS, key=line.count)
    names = next(csv.reader([line], delimiter=delimiter), [])
    return delimiter, _distinct(names or ["(no header)"])


def _distinct(names: list[str]) -> list[str]:
    """Names for all columns: those without one are counted, and so are repeated ones."""
    found: list[str] = []
    taken: set[str] = set()
    for number, given in enumerate(names):
        name = given or f"column{number}"
        tries = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1)))
        found.append(next(each for each in tries if each.lower() not in taken))
        taken.add(found[-1].lower())
    return found
