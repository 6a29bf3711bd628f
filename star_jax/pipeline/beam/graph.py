"""The edges and texts of a graph, surveyed and sorted by the workers of a Beam runner.

The work comes in row groups of the tables. Each is surveyed, and some of its rows are kept; these
say where the parts of the order begin. Then every row group is split into parts, and each part is
sorted by one worker, whose memory must hold it. Nodes are small beside their edges: whoever builds
the graph reads and writes them, and puts the parts together.
"""

import functools
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped

from star_jax import artefacts
from star_jax.graph.build_edges import EDGE_COLUMNS, created_by, edge_rows, table_key
from star_jax.graph.build_source import GraphTables, Rows, TableSource
from star_jax.graph.build_survey import (
    NOTHING,
    Contents,
    EdgeSurvey,
    TextSurvey,
    survey_edges,
    survey_texts,
)
from star_jax.graph.schema import GraphSchema
from star_jax.pipeline.beam.engine import Each, Join, Split, for_each, group
from star_jax.pipeline.beam.sorting import (
    SAMPLES_PER_PART,
    as_rows,
    choose_borders,
    read_parts,
    split_rows,
    write_part,
)
from star_jax.shapes import NO_TIME

_EDGE = np.dtype(  # In the order of the arrays.
    [
        ("receiver", np.int32),
        ("relation", np.int32),
        ("time", np.int64),
        ("sender", np.int32),
        ("removed", np.int64),
        ("weight", np.float32),
        ("flags", np.uint8),
    ]
)
_TEXT = np.dtype([("entity", np.int32), ("time", np.int64), ("text", np.int32)])
_TEXT_COLUMNS = ["entity", "t", "text_id", "kind"]
_SURVEY = b"survey"
_EDGES, _TEXTS = "edges", "texts"
_log = logging.getLogger(__name__)


class _Plan(NamedTuple):
    """What workers must know; all paths are absolute."""

    output: Path  # The graph's folder.
    schema: GraphSchema
    tables: GraphTables
    folder: Path  # Of what the workers leave.
    part_rows: int

    def table(self, piece: str) -> tuple[str, str, int, Path]:
        """Kind of table, its name, row group and file of a piece."""
        kind, name, number = piece.split("/")
        files = self.tables.edges if kind == _EDGES else self.tables.texts
        return kind, name, int(number), files[name]

    def survey(self, piece: str) -> Path:
        """File of what is known of a piece."""
        return self.folder / "survey" / f"{piece}.parquet"


@final
class BeamSource(TableSource):
    """Tables that the workers of a runner survey and sort."""

    def __init__(self, options: Sequence[str], plan: _Plan) -> None:
        """Surveys all of them.

        Args:
          options: Of the pipelines.
          plan: What there is.

        Raises:
          InputError: A row group cannot be read.
        """
        self._options, self._plan = options, plan
        files = {_EDGES: plan.tables.edges, _TEXTS: plan.tables.texts}
        self._pieces = {
            (kind, name): [
                f"{kind}/{name}/{n}" for n in range(pq.read_metadata(path).num_row_groups)
            ]
            for kind, tables in files.items()
            for name, path in tables.items()
        }
        to_do = [piece for piece in self._all() if not plan.survey(piece).is_file()]
        start = time.monotonic()
        for_each(options, "survey of row group", to_do, functools.partial(_surveying, plan))
        _log.info("Beam surveyed %d row groups in %.1f s", len(to_do), time.monotonic() - start)
        self._parts: dict[str, tuple[list[Path], int]] = {}  # Per target; how many rows it has.

    def _all(self) -> Iterator[str]:
        return (piece for pieces in self._pieces.values() for piece in pieces)

    def edges(self, key: str) -> EdgeSurvey:
        """What the edges of a table are."""
        found = (_read_survey(self._plan.survey(piece)) for piece in self._pieces[_EDGES, key])
        surveys = (
            EdgeSurvey(tuple(faults), Contents(*contents), first, last)
            for faults, contents, first, last in found
        )
        return functools.reduce(EdgeSurvey.joined, surveys, NOTHING)

    def texts(self, node_type: str) -> TextSurvey:
        """What the texts of a table are."""
        pieces = self._pieces[_TEXTS, node_type]
        surveys = (TextSurvey(*_read_survey(self._plan.survey(piece))) for piece in pieces)
        return functools.reduce(TextSurvey.joined, surveys, TextSurvey(0, {}))

    def prepare(self, text_kind: Mapping[str, str]) -> None:
        """Sorts all edges and texts, as far as that was not done before."""
        named = json.dumps(sorted(text_kind.items())).encode()
        folder = self._plan.folder / f"sorted-{artefacts.content_digest(named)[:8]}"
        samples = _Targets(self._plan, text_kind).rows(map(self._sample, self._all()))
        borders = {}
        for target, num_rows in self._num_rows(text_kind).items():
            parts = []
            if num_rows:
                sample = np.concatenate(samples[target])
                borders[target] = choose_borders(sample, num_rows, self._plan.part_rows)
                parts = [f"{target}/{n:06d}" for n in range(len(borders[target]) + 1)]
            self._parts[target] = ([folder / f"{part}.npy" for part in parts], num_rows)
        every = (path for paths, _ in self._parts.values() for path in paths)
        missing = [_part_of(path, folder) for path in every if not path.is_file()]
        start = time.monotonic()
        group(
            self._options,
            "row group",
            list(self._all()) if missing else [],
            functools.partial(_splitting, self._plan, text_kind, borders, frozenset(missing)),
            functools.partial(_joining, folder),
        )
        _log.info("Beam sorted %d parts in %.1f s", len(missing), time.monotonic() - start)

    def _sample(self, piece: str) -> tuple[str, pa.Table]:
        return piece, pq.read_table(self._plan.survey(piece))

    def _num_rows(self, text_kind: Mapping[str, str]) -> dict[str, int]:
        schema = self._plan.schema
        edges = {edge.key: self.edges(edge.key).contents.num_edges for edge in schema.edges}
        return {
            f"{_EDGES}/{name}": sum(edges[table_key(edge, schema)] for edge in schema.into(name))
            for name in schema.nodes
        } | {f"{_TEXTS}/{n}": self.texts(n).kinds.get(kind, 0) for n, kind in text_kind.items()}

    def sorted_edges(self, receiver: str) -> Rows:
        """Read from the parts."""
        return read_parts(*self._parts[f"{_EDGES}/{receiver}"])

    def sorted_texts(self, node_type: str) -> Rows:
        """Read from the parts."""
        return read_parts(*self._parts[f"{_TEXTS}/{node_type}"])


class _Targets:
    """Where the rows of a piece belong: all edges into a node type, all texts of one."""

    def __init__(self, plan: _Plan, text_kind: Mapping[str, str]) -> None:
        self._plan, self._text_kind = plan, text_kind

    def of(self, piece: str, table: pa.Table) -> Iterator[tuple[str, Shaped[np.ndarray, " M"]]]:
        """Targets and rows of a piece, or of a sample of it."""
        kind, name, _, _ = self._plan.table(piece)
        for batch in table.combine_chunks().to_batches():
            yield from self._edges(name, batch) if kind == _EDGES else self._texts(name, batch)

    def rows(
        self, pieces: Iterable[tuple[str, pa.Table]]
    ) -> dict[str, list[Shaped[np.ndarray, " _"]]]:
        """The rows of several pieces by target."""
        found: dict[str, list[np.ndarray]] = {}
        for piece, table in pieces:
            for target, rows in self.of(piece, table):
                found.setdefault(target, []).append(rows)
        return found

    def _edges(self, key: str, batch: pa.RecordBatch) -> Iterator[tuple[str, np.ndarray]]:
        schema = self._plan.schema
        for receiver in schema.nodes:
            for number, relation in enumerate(schema.into(receiver)):
                if table_key(relation, schema) == key:
                    created = created_by(self._plan.output, relation)
                    rows = edge_rows(batch, relation, number, schema, created)
                    yield f"{_EDGES}/{receiver}", as_rows(rows, _EDGE)

    def _texts(self, name: str, batch: pa.RecordBatch) -> Iterator[tuple[str, np.ndarray]]:
        kinds = batch["kind"].to_numpy(zero_copy_only=False)
        chosen = batch.filter(pa.array(kinds == self._text_kind[name]))
        columns = {
            "entity": chosen["entity"].to_numpy(),
            "time": chosen["t"].fill_null(NO_TIME).to_numpy(),
            "text": chosen["text_id"].to_numpy(),
        }
        yield f"{_TEXTS}/{name}", as_rows(columns, _TEXT)


@contextmanager
def open_on_beam(
    output: Path,
    schema: GraphSchema,
    tables: GraphTables,
    *,
    options: Sequence[str],
    folder: Path,
    part_rows: int,
) -> Iterator[BeamSource]:
    """Opens the tables for a graph in a folder.

    Args:
      output: The graph's folder.
      schema: Of the graph.
      tables: Where they are.
      options: Of the pipelines.
      folder: Of what the workers leave, named by the tables, the schema and `part_rows`.
      part_rows: About as many edges or texts a worker sorts at a time.
    """
    files = ({name: path.absolute() for name, path in each.items()} for each in tables)
    plan = _Plan(output.absolute(), schema, GraphTables(*files), folder.absolute(), part_rows)
    yield BeamSource(options, plan)


def _surveying(plan: _Plan) -> Each:
    connection = duckdb.connect(":memory:", config={"threads": 1})
    step = max(1, plan.part_rows // SAMPLES_PER_PART)

    def survey(piece: str) -> None:
        kind, name, _, _ = plan.table(piece)
        table = _read(plan, piece)
        connection.register("piece", table)
        if kind == _EDGES:
            found: Any = survey_edges(connection, "piece", name, plan.schema)
        else:
            found = survey_texts(connection, "piece", plan.schema.nodes[name].count)
        connection.unregister("piece")
        sample = table.take(np.arange(0, len(table), step))
        sample = sample.replace_schema_metadata({_SURVEY: json.dumps(found)})
        with artefacts.whole_file(plan.survey(piece)) as partial:
            pq.write_table(sample, partial)

    return survey


def _splitting(
    plan: _Plan,
    text_kind: Mapping[str, str],
    borders: Mapping[str, Shaped[np.ndarray, " _"]],
    wanted: frozenset[str],
) -> Split:
    targets = _Targets(plan, text_kind)

    def split(piece: str) -> Iterator[tuple[str, Shaped[np.ndarray, " _"]]]:
        for target, rows in targets.of(piece, _read(plan, piece)):
            for number, own in split_rows(rows, borders[target]) if len(rows) else ():
                if (part := f"{target}/{number:06d}") in wanted:
                    yield part, own

    return split


def _joining(folder: Path) -> Join:
    return lambda part, blocks: write_part(folder / f"{part}.npy", blocks)


def _part_of(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _read(plan: _Plan, piece: str) -> pa.Table:
    """The rows of a piece, in the columns that matter."""
    kind, _, number, path = plan.table(piece)
    columns = EDGE_COLUMNS if kind == _EDGES else _TEXT_COLUMNS
    with pq.ParquetFile(path) as file:
        return file.read_row_group(number, columns=columns)


def _read_survey(path: Path) -> Any:
    return json.loads((pq.read_schema(path).metadata or {})[_SURVEY])
