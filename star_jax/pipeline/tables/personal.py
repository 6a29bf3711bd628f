"""Personal data: columns that look like it by name or by value are refused unless declared."""

import re
from collections.abc import Collection, Mapping, Sequence

import duckdb

from star_jax.pipeline.tables.findings import Findings

_SAMPLE_ROWS = 2000
_MIN_SHARE = 0.2  # Of the sampled values; below it a match is chance.

# A column's name is split into words first: `emailAddress`, `e-mail_address`, `E_MAIL_ADDRESS`.
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_CONTACTS = re.compile(
    r"(.* )?(?<!\bin )(e ?)?(mails?|tel|(tele|cell|hand)?phones?|mobiles?)( .*)?"
)
# `emails_sent`, `has_phone`, `mobile_app` count or mark, no more.
_ABOUT_CONTACTS = re.compile(
    r"\b(app|bounced|browser|clicked|counts?|device|friendly|has|is|n|num|opened|opt|rate|received|"
    r"sent|share|traffic|type|users?|verified|views)\b"
)
_NAMES = (
    r"(.* )?(first|last|full|given|family|middle|maiden|legal|real|user|login|nick|screen) ?names?",
    r"(.* )?(sur|fore) ?names?|[fl]name|vorname|nachname|prenom|apellidos?",
    r"name (first|last|given|family|full)",
    r"ssn|social ?security( ?(number|no|nr))?|nino|national ?insurance( .*)?",
    r"(.* )?(birth|born|dob|yob|birthday)( .*)?|\w*birth\w*",
    r"(.* )?(street|address|addresses)( .*)?",
    r"(.* )?passports?( .*)?",
    r"(.* )?(national|citizen|tax|driver|drivers|personal|identity|id) ?"
    r"(id|card|number|no|nr|licen[cs]e|identification)( .*)?",
    r"cpf|pesel|nif|nie|bsn|curp|aadhaa?r|codice fiscale|personnummer",
    r"(.* )?iban( .*)?|(.* )?credit ?card( .*)?|(.* )?account (number|no|nr)",
    r"(.* )?ip(v| ?addr(ess)?(es)?)?( .*)?",
    r"(.* )?zip( ?codes?)?( .*)?|(.* )?post(al)? ?codes?( .*)?|(.* )?postal( .*)?|plz",
    r"(.* )?(lat|latitude|lon|lng|longitude)|long",
    r"(.* )?(photo|avatar|portrait|headshot|selfie)s?( .*)?",
    r"(.* )?profile ?(url|uri|link|image|img|pic|picture)s?",
    r"(.* )?(whats ?app|linked ?in|skype|telegram)( .*)?",
)
_NAME = re.compile("|".join(f"(?:{name})" for name in _NAMES))
# With one of these words in its name, a column of long numbers is judged by them.
_HINTS = frozenset(
    {"cell", "citizen", "contact", "fax", "identity", "line", "no", "nr", "number", "sms", "social"}
)
_LONG_NUMBER = r"\+?[0-9]{9,15}(\.0)?"  # Whole numbers beside nulls are often floats.

E_MAIL = r"[^@\s]+@[^@\s]+\.[A-Za-z]{2,}"
_VALUES = {
    "e-mail addresses": E_MAIL,
    "phone numbers": r"(\+[0-9][0-9 ().-]{7,17}|\(?[0-9]{3}\)?[ .-][0-9]{3}[ .-][0-9]{4})",
    "social security numbers": r"[0-9]{3}-[0-9]{2}-[0-9]{4}",
    "bank accounts": r"[A-Z]{2}[0-9]{2}( ?[A-Z0-9]{4}){3,7}( ?[A-Z0-9]{1,3})?",
    "profiles of people": r"(https?://)?([a-z]+\.)?(linkedin\.com/in|wa\.me|t\.me)/.+",
    "IP addresses": r"[0-9]{1,3}(\.[0-9]{1,3}){3}",
}


def looks_personal(column: str, *, names: bool) -> bool:
    """Whether a column's name speaks of personal data.

    Args:
      column: Its name in the file.
      names: A plain `name` counts too: the rows are people.
    """
    words = _words(column)
    if _CONTACTS.fullmatch(words) and not _ABOUT_CONTACTS.search(words):
        return True
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
            continue
        patterns = _VALUES if sql_type == "VARCHAR" and column not in free_text else {}
        if _HINTS.intersection(_words(column).split()):
            patterns = patterns | {"phone or identity numbers": _LONG_NUMBER}
        if patterns:
            what = _look(con, relation, column, patterns)
            if what:
                findings.problem("personal data", where, f"{needed} (its values are {what})")


def _words(column: str) -> str:
    return " ".join(_WORDS.findall(column)).lower()


def _look(
    con: duckdb.DuckDBPyConnection, relation: str, column: str, patterns: Mapping[str, str]
) -> str:
    """What the values of a column look like; empty if nothing personal."""
    name = '"' + column.replace('"', '""') + '"'
    shares = ", ".join(
        f"avg(CAST(regexp_full_match(trim(v), '{pattern}') AS DOUBLE))"
        for pattern in patterns.values()
    )
    try:
        (row,) = con.execute(
            f"SELECT {shares} FROM (SELECT CAST({name} AS VARCHAR) AS v FROM {relation} "
            f"WHERE {name} IS NOT NULL LIMIT {_SAMPLE_ROWS})"
        ).fetchall()
    except duckdb.Error:  # The file breaks off; reading it whole reports that.
        return ""
    found = [
        what
        for what, share in zip(patterns, row, strict=True)
        if share is not None and share >= _MIN_SHARE
    ]
    return found[0] if found else ""
