"""Personal data: columns that look like it by name or by value are refused unless declared."""

import re
from collections.abc import Collection, Sequence

import duckdb

from star_jax.pipeline.tables.findings import Findings

_SAMPLE_ROWS = 2000
_MIN_SHARE = 0.2  # Of the sampled values; below it a match is chance.

# Whole words of a column's name; `emailAddress` and `e-mail_address` are split into words first.
_NAMES = (
    r"(.* )?e ?mails?( address(es)?)?",
    r"(.* )?(tele|cell)?phones?( (number|no))?",
    r"mobiles?( (number|no))?",
    r"(.* )?(first|last|full|given|family|middle|maiden|legal|real) ?names?",
    r"(.* )?sur ?names?",
    r"ssn|social security( (number|no))?",
    r"(.* )?(birth|born|dob|birthday|birthdate)( .*)?",
    r"(.* )?(street|address|addresses)( .*)?",
    r"passports?( .*)?",
    r"(national|tax|driver|drivers|personal) ?(id|number|licen[cs]e)( .*)?",
    r"iban|credit card( .*)?",
    r"ip",
)
_NAME = re.compile("|".join(f"(?:{name})" for name in _NAMES))
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

E_MAIL = r"[^@\s]+@[^@\s]+\.[A-Za-z]{2,}"
_VALUES = {
    "e-mail addresses": E_MAIL,
    "phone numbers": r"(\+[0-9][0-9 ().-]{7,17}|\(?[0-9]{3}\)?[ .-][0-9]{3}[ .-][0-9]{4})",
    "social security numbers": r"[0-9]{3}-[0-9]{2}-[0-9]{4}",
    "IP addresses": r"[0-9]{1,3}(\.[0-9]{1,3}){3}",
}


def looks_personal(column: str, *, names: bool) -> bool:
    """Whether a column's name speaks of personal data.

    Args:
      column: Its name in the file.
      names: A plain `name` counts too: the rows are people.
    """
    words = " ".join(_WORDS.findall(column)).lower()
    return bool(_NAME.fullmatch(words)) or (names and words == "name")


def check_columns(
    con: duckdb.DuckDBPyConnection,
    findings: Findings,
    relation: str,
    file: str,
    types: dict[str, str],
    *,
    declared: Collection[str],
    free_text: Sequence[str],
    names: bool,
) -> None:
    """Records every undeclared column of a file that looks like personal data.

    Args:
      con: Where to sample values.
      findings: Where to record.
      relation: SQL of the file.
      file: Its name.
      types: SQL type per column.
      declared: "file:column" of those that may be here.
      free_text: Columns of prose: their values are not judged.
      names: See `looks_personal`.
    """
    for column, sql_type in types.items():
        where = f"{file}:{column}"
        if where in declared:
            continue
        needed = f'the column gone, or "{where}" in the schema\'s personal_data'
        if looks_personal(column, names=names):
            findings.problem("personal data", where, f"{needed} (its name says so)")
        elif sql_type == "VARCHAR" and column not in free_text:
            what = _look(con, relation, column)
            if what:
                findings.problem("personal data", where, f"{needed} (its values are {what})")


def _look(con: duckdb.DuckDBPyConnection, relation: str, column: str) -> str:
    """What the values of a column look like; empty if nothing personal."""
    name = '"' + column.replace('"', '""') + '"'
    shares = ", ".join(
        f"avg(CAST(regexp_full_match(trim(v), '{pattern}') AS DOUBLE))"
        for pattern in _VALUES.values()
    )
    try:
        (row,) = con.execute(
            f"SELECT {shares} FROM (SELECT {name} AS v FROM {relation} "
            f"WHERE {name} IS NOT NULL LIMIT {_SAMPLE_ROWS})"
        ).fetchall()
    except duckdb.Error:  # The file breaks off; reading it whole reports that.
        return ""
    found = [
        what
        for what, share in zip(_VALUES, row, strict=True)
        if share is not None and share >= _MIN_SHARE
    ]
    return found[0] if found else ""
