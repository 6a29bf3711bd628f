"""Scores of a given cross-encoder, joined to the pairs that learn from them."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int64

from star_jax.config import InputError
from star_jax.embeddings.id_index import MISSING, rows_among
from star_jax.pipeline.tables.findings import Findings
from star_jax.pipeline.tables.read import TaskMeta, read_nodes
from star_jax.pipeline.text_pairs import PairRecords

_COLUMNS = ("sender", "receiver", "score")
_SHOWN = 3  # First rows of a problem.

_log = logging.getLogger(__name__)


def with_teacher(pairs: PairRecords, path: Path, tables: Path, task: TaskMeta) -> PairRecords:
    """The pairs with the teacher's logits, NaN where it gave none.

    Args:
      pairs: Of the train split.
      path: Parquet with `sender` and `receiver`, the ids that `tables` has, and `score`, the
        cross-encoder's logit.
      tables: Where the ids of the nodes are.
      task: Whose pairs.

    Raises:
      InputError: With every kind of problem in the file, or when no pair is in it.
    """
    sender, receiver, scores = _read(path, tables, task)
    width = np.int64(max(int(receiver.max(initial=0)), int(pairs.receiver.max(initial=0))) + 1)
    keys = sender * width + receiver
    order = np.argsort(keys, kind="stable")
    asked = pairs.sender.astype(np.int64) * width + pairs.receiver
    place = np.minimum(np.searchsorted(keys[order], asked), len(keys) - 1)
    found = keys[order][place] == asked
    if not found.any():
        raise InputError(
            f"teacher {path}: none of its {len(keys)} pairs is among the {len(asked)} training "
            "pairs, needed scores of those"
        )
    _log.info(
        "teacher %s: scores of %d pairs; %d of %d training pairs have one",
        path,
        len(keys),
        int(found.sum()),
        len(asked),
    )
    teacher = np.where(found, scores[order][place], np.float32(np.nan))
    return pairs._replace(teacher=teacher.astype(np.float32))


def _read(
    path: Path, tables: Path, task: TaskMeta
) -> tuple[Int64[np.ndarray, " A"], Int64[np.ndarray, " A"], Float32[np.ndarray, " A"]]:
    """(sender, receiver, score) of every row, nodes as indices."""
    table = _table(path)
    findings = Findings()
    ends = []
    for column, node_type in (("sender", task.sender), ("receiver", task.receiver)):
        where = f"{path}:{column}"
        values = table[column].combine_chunks()
        none = np.asarray(values.is_null())
        _check(findings, "null id", where, none, values, "an id in every row")
        index = rows_among(values, read_nodes(tables, node_type)["id"])
        unknown = (index == MISSING) & ~none
        needed = f"ids of {node_type} nodes in {tables}"
        _check(findings, "unknown id", where, unknown, values, needed)
        ends.append(index)
    score = table["score"].combine_chunks()
    numbers = score.cast(pa.float32()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
    bad, needed = ~np.isfinite(numbers), "a finite number in every row"
    _check(findings, "missing score", f"{path}:score", bad, score, needed)
    _check(findings, "duplicate pair", str(path), _again(*ends), table["sender"], "one score each")
    findings.stop_if_any()
    return ends[0], ends[1], numbers


def _table(path: Path) -> pa.Table:
    """The three columns.

    Raises:
      InputError: The file or a column is missing, or a column has another type.
    """
    if not path.is_file():
        raise InputError(f"teacher {path} does not exist, needed a Parquet file")
    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"teacher {path} is no Parquet file") from error
    missing = [name for name in _COLUMNS if name not in schema.names]
    if missing:
        raise InputError(
            f"teacher {path} lacks {', '.join(missing)}, needed {', '.join(_COLUMNS)}; "
            f"it has {', '.join(schema.names)}"
        )
    table = pq.read_table(path, columns=list(_COLUMNS))
    for name in _COLUMNS:
        kind = schema.field(name).type
        if name == "score":
            fine, needed = pa.types.is_floating(kind) or pa.types.is_integer(kind), "numbers"
        else:
            fine = pa.types.is_integer(kind) or pa.types.is_string(kind)
            fine, needed = fine or pa.types.is_large_string(kind), "strings or integers"
        if not fine:
            raise InputError(f"teacher {path}: column {name} holds {kind}, needed {needed}")
    if not len(table):
        raise InputError(f"teacher {path} has no rows, needed scores of training pairs")
    return table


def _again(
    sender: Int64[np.ndarray, " A"], receiver: Int64[np.ndarray, " A"]
) -> Bool[np.ndarray, " A"]:
    """Rows whose pair of known nodes was there before."""
    _, first = np.unique(np.stack([sender, receiver], axis=1), axis=0, return_index=True)
    again = (sender >= 0) & (receiver >= 0)
    again[first] = False
    return again


def _check(
    findings: Findings,
    kind: str,
    where: str,
    bad: Bool[np.ndarray, " A"],
    values: pa.Array | pa.ChunkedArray,
    needed: str,
) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        examples = [f"{row + 1} ({values[int(row)].as_py()!r})" for row in rows[:_SHOWN]]
        findings.problem(kind, where, needed, count=len(rows), examples=examples)
