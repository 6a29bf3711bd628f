"""Events and edges of an import, read, checked and resolved by the workers of a Beam runner.

Rows are grouped by their two ids: whatever a check of these tables compares has both in common.
Each group is a part, which one worker loads into a database of its own by the code that loads a
whole file elsewhere. The importing process then has the rows without their ids, and one finding
where several workers found the same.
"""

import functools
import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from star_jax import artefacts
from star_jax.config import InputError
from star_jax.pipeline.beam.engine import Join, Split, group
from star_jax.pipeline.tables.build import load_here
from star_jax.pipeline.tables.database import NUM_EXAMPLES, Database, Limits, quoted, trimmed
from star_jax.pipeline.tables.edges import edge_table, load_edges
from star_jax.pipeline.tables.events import event_table, load_events
from star_jax.pipeline.tables.files import file_sql, literal, reason
from star_jax.pipeline.tables.findings import Findings
from star_jax.pipeline.tables.nodes import ids_table
from star_jax.pipeline.tables.schema import Schema
from star_jax.pipeline.tables.schema_file import schema_json
from star_jax.pipeline.tables.sources import EdgeSource, EventSource
from star_jax.pipeline.tables.texts import has_texts, text_table

_OF_FILES = ("missing column",)  # Problems that one look at a file finds, and workers find again.
_CSV_ROW_BYTES = 32  # For a guess at their number.
_log = logging.getLogger(__name__)

Source = EventSource | EdgeSource


class _Plan(NamedTuple):
    """What workers must know; all paths are absolute."""

    data: Path
    folder: Path  # Of what they read and leave.
    schema: Schema
    limits: Limits
    fix: bool
    broken: frozenset[str]
    columns: dict[str, list[str]]  # By table.
    num_parts: dict[str, int]  # By table.

    def source(self, table: str) -> tuple[int, Source]:
        """What a table is made of, and its place among the events or edges."""
        return _sources(self.schema)[table]

    def part(self, part: str) -> Path:
        """File of the rows of a part; its findings lie beside it."""
        return self.folder / "parts" / f"{part}.parquet"


@final
class BeamLoad:
    """Loads all events and edges, as `load_here` does."""

    def __init__(
        self, options: Sequence[str], scratch: Path, part_rows: int, limits: Limits, *, fix: bool
    ) -> None:
        """Takes settings.

        Args:
          options: Of the pipeline.
          scratch: Of what workers read and leave.
          part_rows: About as many rows a worker checks at a time.
          limits: Of the database of a worker.
          fix: Apply the repairs that leave no choice.
        """
        self._options, self._scratch = options, scratch.absolute()
        self._part_rows, self._limits, self._fix = part_rows, limits, fix

    def __call__(self, db: Database, schema: Schema) -> None:
        """Reads and checks them into their tables."""
        sources = _sources(schema)
        for _, source in sources.values():
            path = db.data / source.file
            if path.is_file() and path.suffix in (".parquet", ".csv"):
                db.rows_of[source.file] = f"(SELECT * FROM {file_sql(path)} LIMIT 0)"
        load_here(db, schema)  # Of the files, their columns; no row.
        plan = self._plan(db, schema)
        _lend_tables(db, plan)
        wanted = {
            f"{table}/{n:06d}": plan.part(f"{table}/{n:06d}")
            for table, num_parts in plan.num_parts.items()
            for n in range(num_parts)
        }
        missing = frozenset(p for p, path in wanted.items() if not _findings_of(path).is_file())
        pieces = [piece for table in plan.num_parts for piece in _pieces(plan, table)]
        start = time.monotonic()
        group(
            self._options,
            "rows of",
            pieces if missing else [],
            functools.partial(_splitting, plan, missing),
            functools.partial(_joining, plan),
        )
        _log.info("Beam checked %d parts in %.1f s", len(missing), time.monotonic() - start)
        for table in plan.num_parts:
            parts = [path for part, path in wanted.items() if part.rpartition("/")[0] == table]
            _bring(db, plan, table, [path for path in parts if _findings_of(path).is_file()])

    def _plan(self, db: Database, schema: Schema) -> _Plan:
        files = {s.file for s in (*schema.nodes, *schema.texts, *schema.events, *schema.edges)}
        stats = [(file, (db.data / file).stat()) for file in sorted(files) if _is_file(db, file)]
        made_from = [
            json.loads(schema_json(schema)),
            [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats],
            [self._fix, self._part_rows],
        ]
        name = artefacts.content_digest(json.dumps(made_from).encode())[:16]
        readable = {t: s.file for t, (_, s) in _sources(schema).items() if t in db.columns_of}
        return _Plan(
            db.data.absolute(),
            self._scratch / name,
            schema,
            self._limits,
            self._fix,
            frozenset(db.broken),
            db.columns_of,
            {t: -(-_num_rows(db.data / f) // self._part_rows) or 1 for t, f in readable.items()},
        )


def _sources(schema: Schema) -> dict[str, tuple[int, Source]]:
    events: dict[str, tuple[int, Source]] = {
        event_table(k): (k, source) for k, source in enumerate(schema.events)
    }
    return events | {edge_table(s.name): (k, s) for k, s in enumerate(schema.edges)}


def _is_file(db: Database, file: str) -> bool:
    return (db.data / file).is_file()


def _num_rows(path: Path) -> int:
    """Of a table; about, for a CSV file."""
    if path.suffix == ".csv":
        return path.stat().st_size // _CSV_ROW_BYTES
    return pq.read_metadata(path).num_rows


def _pieces(plan: _Plan, table: str) -> Iterator[str]:
    """TABLE/FIRST-LAST for the rows of every row group, from 1 on; a CSV file is one piece."""
    path = plan.data / plan.source(table)[1].file
    if path.suffix == ".csv":
        yield f"{table}/1-"
        return
    meta, first = pq.read_metadata(path), 1
    for number in range(meta.num_row_groups):
        end = first + meta.row_group(number).num_rows
        yield f"{table}/{first}-{end - 1}"
        first = end


def _lend_tables(db: Database, plan: _Plan) -> None:
    """Writes what the ids of events and edges are looked up in."""
    for node in plan.schema.nodes:
        tables = {ids_table(node.type): "SELECT id, idx, t FROM {}"}
        if has_texts(db, plan.schema, node.type):
            pointers = "SELECT pointer, text_id, idx, kind FROM {} WHERE pointer IS NOT NULL"
            tables[text_table(node.type)] = pointers
        for table, sql in tables.items():
            with artefacts.whole_file(_lent(plan, table)) as partial:
                _copy(db, sql.format(quoted(table)), partial)


def _lent(plan: _Plan, table: str) -> Path:
    return plan.folder / "lent" / f"{table}.parquet"


@contextmanager
def _database(plan: _Plan, findings: Findings) -> Iterator[Database]:
    """An empty one on a worker."""
    with TemporaryDirectory(prefix="star-import-") as scratch:
        db = Database(
            plan.data,
            Path(scratch),
            findings,
            plan.limits,
            unix_time=plan.schema.time_unit == "unix_s",
            fix=plan.fix,
            judged=[source.file for _, source in _sources(plan.schema).values()],
        )
        try:
            yield db
        finally:
            db.close()


@contextmanager
def _without_cells(plan: _Plan, file: str) -> Iterator[None]:
    """Says what is wrong with a file, but nothing that is in it.

    Raises:
      InputError: It breaks off.
    """
    try:
        yield
    except (duckdb.InvalidInputException, duckdb.IOException, duckdb.ConversionException) as error:
        told = reason(error, plan.data)
        message = f"unreadable file in {file}: needed a whole file ({told})"
        raise InputError(message) from None  # A worker's log would show the cells of the cause.


def _splitting(plan: _Plan, wanted: frozenset[str]) -> Split:
    def split(piece: str) -> Iterator[tuple[str, pa.Table]]:
        table, _, rows = piece.rpartition("/")
        first, _, last = rows.partition("-")
        _, source = plan.source(table)
        columns = plan.columns[table]
        ends = [quoted(c) for c in (source.sender_id, source.receiver_id) if c in columns]
        hashed = ", ".join(trimmed(f"CAST({end} AS VARCHAR)") for end in ends) or "0"
        where = f'WHERE "row" BETWEEN {first} AND {last}' if last else ""
        sql = (
            f'SELECT "row", {", ".join(map(quoted, columns))}, '
            f"CAST(hash({hashed}) % {plan.num_parts[table]} AS INTEGER) AS "
            f'"part of" FROM {file_sql(plan.data / source.file)} {where}'
        )
        with _database(plan, Findings()) as db, _without_cells(plan, source.file):
            for batch in db.batches(f'SELECT * FROM ({sql}) ORDER BY "part of"'):
                yield from _by_part(pa.Table.from_batches([batch]), table, wanted)

    return split


def _by_part(rows: pa.Table, table: str, wanted: frozenset[str]) -> Iterator[tuple[str, pa.Table]]:
    """Rows in the order of their parts, part by part."""
    number = rows["part of"].to_numpy()
    rows = rows.drop_columns(["part of"])
    start = 0
    while start < len(number):
        end = int(number.searchsorted(number[start], side="right"))
        if (part := f"{table}/{number[start]:06d}") in wanted:
            yield part, rows.slice(start, end - start)
        start = end


def _joining(plan: _Plan) -> Join:
    def join(part: str, blocks: Iterable[pa.Table]) -> None:
        table = part.rpartition("/")[0]
        index, source = plan.source(table)
        findings, rows = Findings(), pa.concat_tables(list(blocks))
        with _database(plan, findings) as db, TemporaryDirectory(prefix="star-import-") as local:
            pq.write_table(rows, Path(local) / "rows.parquet")
            db.broken |= plan.broken
            db.rows_of[source.file] = _files_sql([Path(local) / "rows.parquet"])
            for path in (plan.folder / "lent").glob("*.parquet"):
                db.run(f"CREATE VIEW {quoted(path.stem)} AS FROM {_files_sql([path])}")
            if isinstance(source, EventSource):
                load_events(db, index, plan.schema)
            else:
                load_edges(db, source, plan.schema)
            with artefacts.whole_file(plan.part(part)) as partial:
                _copy(db, f"SELECT * EXCLUDE (sender, receiver) FROM {quoted(table)}", partial)
        told = {
            "num_rows": len(rows),
            "problems": [vars(problem) for problem in findings.problems],
            "counts": findings.counts,
        }
        artefacts.write_text(_findings_of(plan.part(part)), json.dumps(told))

    return join


def _bring(db: Database, plan: _Plan, table: str, parts: list[Path]) -> None:
    """Joins rows and findings of all parts of a table.

    Raises:
      InputError: There are more or fewer rows than in the file.
    """
    told = [json.loads(_findings_of(path).read_text(encoding="utf-8")) for path in parts]
    file = plan.source(table)[1].file
    path, num_rows = plan.data / file, sum(each["num_rows"] for each in told)
    if path.suffix == ".parquet" and num_rows != _num_rows(path):
        raise InputError(
            f"{plan.folder} holds {num_rows} rows of {path}, needed {_num_rows(path)}; remove it"
        )
    if not num_rows:
        db.findings.problem("empty table", file, "at least one row")
    for each in _joined(told):
        db.findings.problem(**each)
    for each in told:
        for group_name, counts in each["counts"].items():
            for name, count in counts.items():
                db.findings.count(group_name, name, count)
    if parts:
        db.run(f"INSERT INTO {quoted(table)} BY NAME FROM {_files_sql(parts)}")


def _joined(told: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The problems of all parts, with the first rows of each kind of problem."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for problem in (problem for each in told for problem in each["problems"]):
        if problem["kind"] in _OF_FILES:
            continue
        key = tuple(problem[name] for name in ("kind", "where", "needed"))
        whole = found.setdefault(key, problem | {"count": 0, "examples": []})
        whole["count"] += problem["count"]
        examples = sorted([*whole["examples"], *problem["examples"]], key=_row)
        whole["examples"] = examples[:NUM_EXAMPLES]
    return list(found.values())


def _row(example: str) -> int:
    number = re.match(r"row (\d+)", example)
    assert number is not None, example
    return int(number[1])


def _findings_of(part: Path) -> Path:
    return part.with_suffix(".json")


def _files_sql(paths: Sequence[Path]) -> str:
    return f"read_parquet([{', '.join(literal(str(path)) for path in paths)}])"


def _copy(db: Database, sql: str, path: Path) -> None:
    db.run(f"COPY ({sql}) TO {literal(str(path))} (FORMAT parquet)")
