"""The nodes of a star-tidy-1 folder: which columns are features, cohorts, ids or texts."""

from collections.abc import Sequence

from star_jax.pipeline.tables.database import quoted
from star_jax.pipeline.tables.peek import Peek
from star_jax.pipeline.tables.sources import NodeSource

_OWN = ("idx", "key", "t", "name", "text", "consent", "opt_out", "opted_out")
_COHORTS = ("gender", "sex", "age_group", "ethnicity", "race")
_MAX_CATEGORIES = 5000
_MIN_ROWS_PER_CATEGORY = 2


def node_sources(peek: Peek, types: Sequence[str], ends: tuple[str, str]) -> tuple[NodeSource, ...]:
    """One source per type; `ends` are the sender and the receiver of the events."""
    entities = _entities(peek, ends)
    return tuple(_source(peek, node_type, node_type in entities) for node_type in types)


def _entities(peek: Peek, ends: tuple[str, str]) -> set[str]:
    """The ends, and whatever has edges to an entity; all other types only describe these."""
    entities = set(ends)
    edges = [stem.split("__") for stem in peek.stems("edges")]
    while True:
        more = {e[0] for e in edges if len(e) == 3 and e[2] in entities} - entities
        if not more:
            return entities
        entities |= more


def _source(peek: Peek, node_type: str, is_entity: bool) -> NodeSource:
    stem = f"nodes/{node_type}"
    columns = peek.columns(stem)
    categorical, dense, cohorts = [], [], []
    for column, sql_type in columns.items():
        if column in _OWN:
            continue
        if column in _COHORTS or column.startswith("cohort_"):
            cohorts.append(column)
        elif sql_type in ("VARCHAR", "BOOLEAN"):
            if _is_categorical(peek, stem, column):
                categorical.append(column)
        elif _is_number(sql_type) and peek.number(stem, f"count({quoted(column)})"):
            dense.append(column)
    file = peek.file(stem)
    assert file is not None
    opt_out = next((c for c in ("opt_out", "opted_out") if c in columns), None)
    return NodeSource(
        type=node_type,
        file=file,
        id="idx",
        public_id="key" if _is_id(peek, stem) else None,
        time="t" if "t" in columns else None,
        categorical=tuple(categorical),
        dense=tuple(dense),
        cohorts=tuple(cohorts),
        text=None if peek.file(f"texts/{node_type}") else _text(peek, stem, is_entity),
        consent="consent" if "consent" in columns else None,
        opt_out=opt_out,
    )


def _is_categorical(peek: Peek, stem: str, column: str) -> bool:
    """Values that come back; what is nearly different in every row is an id or prose."""
    name = quoted(column)
    different = peek.number(stem, f"count(DISTINCT {name})")
    rows = peek.number(stem, f"count({name})")
    return 0 < different <= min(_MAX_CATEGORIES, rows / _MIN_ROWS_PER_CATEGORY)


def _is_number(sql_type: str) -> bool:
    return sql_type.endswith("INT") or sql_type.startswith(
        ("INTEGER", "FLOAT", "DOUBLE", "DECIMAL")
    )


def _is_id(peek: Peek, stem: str) -> bool:
    """Whether `key` tells every node from the others; `idx` does in any case."""
    if not peek.has(stem, "key"):
        return False
    different = peek.number(stem, 'count(DISTINCT "key")')
    return different == peek.number(stem, "count(*)")


def _text(peek: Peek, stem: str, is_entity: bool) -> str | None:
    """The column that describes a node: prose, else a name, else a key that is not a number."""
    columns = peek.columns(stem)
    names = ("text",) if is_entity else ("text", "name", "key")
    for column in names:
        if columns.get(column) != "VARCHAR":
            continue
        letters = peek.number(
            stem, f"avg(CAST(regexp_matches({quoted(column)}, '\\p{{L}}') AS DOUBLE))"
        )
        if letters >= 0.5:
            return column
    return None
