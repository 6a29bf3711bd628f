"""Stage 4: the labelled pairs of a task, fixed ones or a positive per event with its negatives."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, Int64

from star_jax.pipeline.tables.database import Column, Database, quoted
from star_jax.pipeline.tables.events import event_table
from star_jax.pipeline.tables.files import literal
from star_jax.pipeline.tables.nodes import ids_table
from star_jax.pipeline.tables.read import SPLIT_CODES, SPLITS, PairTable
from star_jax.pipeline.tables.resolve import End, resolve
from star_jax.pipeline.tables.schema import NEGATIVE_KINDS, Schema, TaskSource
from star_jax.pipeline.tables.sources import PairSource
from star_jax.pipeline.tables.splits import column_code
from star_jax.pipeline.tables.texts import (
    Pointer,
    Versions,
    resolve_pointers,
    text_as_of,
    versions,
)
from star_jax.shapes import NO_TIME


class Outcomes(NamedTuple):
    """Events of one task and label, ordered by (time, sender, receiver).

    A text is NO_TIME where the event points to none; `session` is -1 without one.
    """

    sender: Int64[np.ndarray, " M"]
    receiver: Int64[np.ndarray, " M"]
    t: Int64[np.ndarray, " M"]
    code: Int[np.ndarray, " M"]
    session: Int64[np.ndarray, " M"]
    sender_text: Int64[np.ndarray, " M"]
    sender_resume: Int64[np.ndarray, " M"]
    receiver_text: Int64[np.ndarray, " M"]

    def take(self, rows: np.ndarray) -> "Outcomes":
        """The chosen rows."""
        return Outcomes(*(column[rows] for column in self))


class TextLookup(NamedTuple):
    """Everything needed to find the texts of a pair as of its time."""

    sender: Versions
    resume: Versions
    receiver: Versions


def pair_table(task: str, split: str) -> str:
    """Name of the table of fixed pairs."""
    return f"pairs {task} {split}"


def text_lookup(db: Database, schema: Schema, task: TaskSource) -> TextLookup:
    """The versions of a task's two sides."""
    return TextLookup(
        versions(db, schema, task.sender, resume=False),
        versions(db, schema, task.sender, resume=True),
        versions(db, schema, task.receiver, resume=False),
    )


def read_outcomes(db: Database, schema: Schema, task: TaskSource, label: int) -> Outcomes:
    """The events that a task labels 1 or 0; of positives only the first of each pair."""
    parts = []
    for k, source in enumerate(schema.events):
        actions = [literal(action) for action, value in task.labels.items() if value == label]
        if (source.sender, source.receiver) == (task.sender, task.receiver) and actions:
            parts.append(
                f'SELECT {k} AS k, "row", sender_idx, receiver_idx, t, code, session, '
                "sender_text_id, sender_resume_id, receiver_text_id "
                f"FROM {quoted(event_table(k))} WHERE code >= 0 AND action IN ({','.join(actions)})"
            )
    if not parts:
        none = np.zeros(0, np.int64)
        return Outcomes(none, none, none, none, none, none, none, none)
    order = 't NULLS FIRST, sender_idx, receiver_idx, k, "row"'
    once = f"QUALIFY row_number() OVER (PARTITION BY sender_idx, receiver_idx ORDER BY {order}) = 1"
    union = " UNION ALL ".join(parts)
    rows = db.arrays(
        f"SELECT sender_idx, receiver_idx, t, code, coalesce(dense_rank() OVER (ORDER BY session "
        f"NULLS LAST), 0) AS session, session IS NULL AS alone, sender_text_id, sender_resume_id, "
        f"receiver_text_id FROM ({union}) {once if label else ''} ORDER BY {order}"
    )
    if label:
        repeated = db.value(f"SELECT count(*) FROM ({union})") - len(rows["t"])
        what = f"{task.name}: repeated positives of a pair (the first counts)"
        db.findings.count("excluded", what, repeated)
    integers = {name: values.astype(np.int64) for name, values in rows.items() if name != "alone"}
    return Outcomes(
        sender=integers["sender_idx"],
        receiver=integers["receiver_idx"],
        t=integers["t"],
        code=integers["code"],
        session=np.where(rows["alone"].astype(bool), -1, integers["session"]),
        sender_text=integers["sender_text_id"],
        sender_resume=integers["sender_resume_id"],
        receiver_text=integers["receiver_text_id"],
    )


def stage_pairs(db: Database, schema: Schema) -> None:
    """Reads and checks the fixed pairs of every task."""
    for task in schema.tasks:
        if task.pairs is None:
            continue
        for split in SPLITS:
            _load(db, schema, task, task.pairs, split)


def _load(db: Database, schema: Schema, task: TaskSource, source: PairSource, split: str) -> None:
    table = pair_table(task.name, split)
    file = source.file.replace("{split}", split)
    columns = [
        Column(source.sender_id, "sender", "id", True),
        Column(source.receiver_id, "receiver", "id", True),
        Column(source.label, "label", "flag", True),
    ]
    if source.time is not None:
        columns.append(Column(source.time, "t", "time", False))
    if source.split is not None:
        columns.append(Column(source.split, "split", "id", True))
    if source.negative is not None:
        columns.append(Column(source.negative, "negative", "category", False))
    if source.true_logit is not None:
        columns.append(Column(source.true_logit, "true_logit", "number", False))
    if source.slice is not None:
        columns.append(Column(source.slice, "slice", "category", False))
    for flag, name in (
        (source.warm_sender, "warm_sender"),
        (source.warm_receiver, "warm_receiver"),
    ):
        if flag is not None:
            columns.append(Column(flag, name, "flag", True))
    pointers = (
        Pointer("sender_text", source.sender_text, "sender", task.sender, False),
        Pointer("sender_resume", source.sender_resume, "sender", task.sender, True),
        Pointer("receiver_text", source.receiver_text, "receiver", task.receiver, False),
    )
    columns += [Column(p.file_column, p.name, "id", False) for p in pointers if p.file_column]
    db.load(table, file, columns, unique_rows=False)
    have = {column.name for column in columns}
    for name, sql in _DEFAULTS.items():
        if name not in have:
            db.run(f"ALTER TABLE {quoted(table)} ADD COLUMN {name} {sql}")
    _check(db, schema, source, table, file, split)
    ends = (
        End("sender", source.sender_id, task.sender),
        End("receiver", source.receiver_id, task.receiver),
    )
    resolve(db, table, file, ends)
    resolve_pointers(db, table, file, pointers)
    _drop_groups(db, table, file)


_DEFAULTS = {
    "t": "BIGINT",
    "negative": "VARCHAR DEFAULT 'impressed'",
    "true_logit": "DOUBLE",
    "slice": "VARCHAR DEFAULT ''",
    "warm_sender": "BOOLEAN",
    "warm_receiver": "BOOLEAN",
}


def _check(
    db: Database, schema: Schema, source: PairSource, table: str, file: str, split: str
) -> None:
    name = quoted(table)
    if source.split is not None:
        code = column_code(schema, "split")
        names = ", ".join(schema.split_names)
        where = f"{file}:{source.split}"
        unknown = f"split IS NOT NULL AND {code} IS NULL"
        db.check("unknown split", where, name, unknown, f"one of {names}", shown="split")
        db.run(f"DELETE FROM {name} WHERE {code} IS DISTINCT FROM {SPLIT_CODES[split]}")
        if table not in db.broken and not db.value(f"SELECT count(*) FROM {name}"):
            db.findings.problem("empty split", where, f"rows with split {split}")
    kinds = ", ".join(literal(kind) for kind in NEGATIVE_KINDS)
    db.check(
        "unknown negative",
        f"{file}:{source.negative}",
        name,
        f"NOT label AND coalesce(negative, '') NOT IN ({kinds})",
        f"one of {', '.join(NEGATIVE_KINDS)} where the label is 0",
        shown="negative",
    )
    group = 'sum(CAST(label AS INTEGER)) OVER (ORDER BY "row")' if source.grouped else '"row"'
    db.run(f"CREATE OR REPLACE TABLE {name} AS SELECT *, {group} AS grp FROM {name}")
    if source.grouped:
        stray = (
            '(SELECT "row", grp, sender, t, first_value(sender) OVER w AS s0, '
            f"first_value(t) OVER w AS t0 FROM {name} "
            'WINDOW w AS (PARTITION BY grp ORDER BY "row"))'
        )
        needed = "every negative after its positive, with the same sender and time"
        apart = "grp = 0 OR sender IS DISTINCT FROM s0 OR t IS DISTINCT FROM t0"
        db.check("stray negative", file, stray, apart, needed, shown="sender")


def _drop_groups(db: Database, table: str, file: str) -> None:
    """Drops the pairs of opted-out nodes, and the negatives of a positive that goes."""
    name = quoted(table)
    gone = f"excluded OR grp IN (SELECT grp FROM {name} WHERE excluded AND label)"
    count = db.value(f"SELECT count(*) FROM {name} WHERE {gone}")
    db.findings.count("excluded", f"{file} pairs of opted-out nodes", count)
    db.run(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM {name} WHERE NOT ({gone})")


def fixed_pairs(
    db: Database, task: TaskSource, split: str, lookup: TextLookup, known: Outcomes
) -> PairTable:
    """The fixed pairs of a split; texts without a pointer as of their time.

    Args:
      db: Holds the checked pairs.
      task: Whose pairs.
      split: Which.
      lookup: The task's texts.
      known: Positives, for the warm flags that the file does not hold.
    """
    rows = db.arrays(
        "SELECT sender_idx, receiver_idx, CAST(label AS INTEGER) AS label, "
        "CASE WHEN label THEN '' ELSE negative END AS negative, t, "
        "CAST(dense_rank() OVER (ORDER BY grp) - 1 AS INTEGER) AS grp, sender_text_id, "
        "sender_resume_id, receiver_text_id, CAST(warm_sender AS INTEGER) AS warm_sender, "
        "CAST(warm_receiver AS INTEGER) AS warm_receiver, true_logit, "
        f"coalesce(slice, '') AS slice FROM {quoted(pair_table(task.name, split))} "
        'ORDER BY "row"'
    )
    sender, receiver, t = rows["sender_idx"], rows["receiver_idx"], rows["t"].astype(np.int64)
    warm = [
        np.where(given != NO_TIME, given == 1, np.isin(ends, seen))
        for given, ends, seen in (
            (rows["warm_sender"], sender, _seen(known.sender, known, split)),
            (rows["warm_receiver"], receiver, _seen(known.receiver, known, split)),
        )
    ]
    return PairTable(
        sender=sender.astype(np.int32),
        receiver=receiver.astype(np.int32),
        label=rows["label"].astype(np.int8),
        negative=rows["negative"].astype(np.str_),
        t=t,
        group=rows["grp"].astype(np.int32),
        sender_text=with_pointer(rows["sender_text_id"], lookup.sender, sender, t),
        sender_resume=with_pointer(rows["sender_resume_id"], lookup.resume, sender, t),
        receiver_text=with_pointer(rows["receiver_text_id"], lookup.receiver, receiver, t),
        warm_sender=warm[0],
        warm_receiver=warm[1],
        true_logit=rows["true_logit"].astype(np.float32),
        slice=rows["slice"].astype(np.str_),
    )


def with_pointer(
    pointer: np.ndarray, known: Versions, entity: np.ndarray, t: np.ndarray
) -> Int32[np.ndarray, " B"]:
    """The text that a row points to; where it points nowhere, the last one before its time."""
    return np.where(pointer != NO_TIME, pointer, text_as_of(known, entity, t)).astype(np.int32)


def _seen(ends: np.ndarray, known: Outcomes, split: str) -> np.ndarray:
    return np.unique(ends[known.code < earliest_unseen(split)])


def earliest_unseen(split: str) -> int:
    """Events with a smaller code are warm history: train for itself and val, val too for test."""
    return max(SPLIT_CODES[split], SPLIT_CODES["train"] + 1)


def creation_times(db: Database, node_type: str, count: int) -> Int64[np.ndarray, " N"]:
    """Per node index; NO_TIME where unknown."""
    rows = db.arrays(f"SELECT idx, t FROM {quoted(ids_table(node_type))} WHERE idx IS NOT NULL")
    times = np.full(count, NO_TIME, np.int64)
    times[rows["idx"]] = rows["t"]
    return times
