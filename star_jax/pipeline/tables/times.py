"""Time units: all times of a data set must be in the unit that its schema declares."""

from star_jax.pipeline.tables.database import Database, quoted

_DAYS, _SECONDS, _MILLISECONDS, _FINER = "days or hours", "seconds", "milliseconds", "micro or nano"


def check_time_units(db: Database, *, unix_time: bool) -> None:
    """Records columns with times that cannot be unix seconds beside the others.

    A second number reaches 1e11 in the year 5138, and lies below 1e6 only in the first days of
    1970: such values are in another unit. Ordinal times have no unit to mix.
    """
    if not unix_time:
        return
    columns = [(quoted(table), quoted(column), where) for table, column, where in db.time_columns]
    counts = [_counts(db, table, column) for table, column, _ in columns]
    total = {unit: sum(count[unit] for count in counts) for unit in counts[0]} if counts else {}
    for (table, column, where), count in zip(columns, counts, strict=True):
        wrong = [
            unit
            for unit, condition in _UNITS.items()
            if count[unit]
            and (
                unit in (_MILLISECONDS, _FINER)
                or (unit == _DAYS and total[_SECONDS] + total[_MILLISECONDS] + total[_FINER])
            )
        ]
        if wrong:
            any_of = " OR ".join(f"({_UNITS[unit].format(t=column)})" for unit in wrong)
            needed = f"unix seconds, as declared (these look like {' and '.join(wrong)})"
            db.check("mixed time units", where, table, any_of, needed, shown=column)


_UNITS = {
    _DAYS: "abs({t}) < 1e6",
    _SECONDS: "abs({t}) >= 1e6 AND abs({t}) < 1e11",
    _MILLISECONDS: "abs({t}) >= 1e11 AND abs({t}) < 1e14",
    _FINER: "abs({t}) >= 1e14",
}


def _counts(db: Database, table: str, column: str) -> dict[str, int]:
    return {
        unit: db.value(f"SELECT count(*) FROM {table} WHERE {condition.format(t=column)}")
        for unit, condition in _UNITS.items()
    }
