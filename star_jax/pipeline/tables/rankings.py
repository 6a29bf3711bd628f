"""Stage 5: ranking queries of a task: one per sender that acted before, over the split's pool."""

import numpy as np
from jaxtyping import Int

from star_jax.pipeline.tables.database import Column, Database, quoted
from star_jax.pipeline.tables.pairs import Outcomes, TextLookup, with_pointer
from star_jax.pipeline.tables.read import SPLIT_CODES, Ranking
from star_jax.pipeline.tables.resolve import End, drop_excluded, resolve
from star_jax.pipeline.tables.schema import Schema, TaskSource
from star_jax.pipeline.tables.sources import RankingSource
from star_jax.pipeline.tables.texts import (
    NO_TEXT,
    Pointer,
    Versions,
    resolve_pointers,
    text_as_of,
)
from star_jax.shapes import NO_TIME

RANKED_SPLITS = ("val", "test")


def stage_rankings(db: Database, schema: Schema) -> None:
    """Reads and checks the fixed ranking queries and candidates of every task."""
    for task in schema.tasks:
        if task.ranking is not None:
            for split in RANKED_SPLITS:
                _load_queries(db, task, task.ranking, split)
                _load_candidates(db, task, task.ranking, split)


def _load_queries(db: Database, task: TaskSource, source: RankingSource, split: str) -> None:
    table, file = f"rank {task.name} {split}", source.file.replace("{split}", split)
    columns = [
        Column(source.sender_id, "sender", "id", True),
        Column(source.receiver_id, "receiver", "id", True),
    ]
    if source.time is not None:
        columns.append(Column(source.time, "t", "time", False))
    if source.keep is not None:
        columns.append(Column(source.keep, "keep", "flag", True))
    pointers = (
        Pointer("sender_text", source.sender_text, "sender", task.sender, False),
        Pointer("sender_resume", source.sender_resume, "sender", task.sender, True),
    )
    columns += [Column(p.file_column, p.name, "id", False) for p in pointers if p.file_column]
    db.load(table, file, columns, unique_rows=False)
    if source.time is None:
        db.run(f"ALTER TABLE {quoted(table)} ADD COLUMN t BIGINT")
    ends = (
        End("sender", source.sender_id, task.sender),
        End("receiver", source.receiver_id, task.receiver),
    )
    resolve(db, table, file, ends)
    resolve_pointers(db, table, file, pointers)
    drop_excluded(db, table, f"{file} queries")
    if source.keep is not None:
        db.run(f"DELETE FROM {quoted(table)} WHERE NOT keep")


def _load_candidates(db: Database, task: TaskSource, source: RankingSource, split: str) -> None:
    table, file = f"candidates {task.name} {split}", source.candidates.replace("{split}", split)
    db.load(table, file, [Column(source.candidate_id, "receiver", "id", True)])
    again = (
        '(SELECT "row", receiver, row_number() OVER (PARTITION BY receiver ORDER BY "row") AS n '
        f"FROM {quoted(table)} WHERE receiver IS NOT NULL)"
    )
    where = f"{file}:{source.candidate_id}"
    needed = "each candidate once (--fix removes copies)"
    db.check("duplicate id", where, again, "n > 1", needed, shown="receiver")
    resolve(db, table, file, (End("receiver", source.candidate_id, task.receiver),))
    drop_excluded(db, table, f"{file} candidates")


def fixed_ranking(
    db: Database, task: TaskSource, split: str, lookup: TextLookup, positives: Outcomes
) -> Ranking:
    """The fixed queries of a split, one per sender, as of its first row."""
    rows = db.arrays(
        "SELECT sender_idx, receiver_idx, t, sender_text_id, sender_resume_id "
        f'FROM {quoted(f"rank {task.name} {split}")} ORDER BY t NULLS FIRST, "row"'
    )
    table = quoted(f"candidates {task.name} {split}")
    candidates = db.arrays(f"SELECT receiver_idx FROM {table} ORDER BY receiver_idx")[
        "receiver_idx"
    ]
    none = np.full(len(rows["t"]), NO_TIME, np.int64)
    queries = Outcomes(
        sender=rows["sender_idx"].astype(np.int64),
        receiver=rows["receiver_idx"].astype(np.int64),
        t=rows["t"].astype(np.int64),
        code=none,
        session=none,
        sender_text=rows["sender_text_id"].astype(np.int64),
        sender_resume=rows["sender_resume_id"].astype(np.int64),
        receiver_text=none,
    )
    return _ranking(queries, candidates, split, lookup, positives)


def sampled_ranking(split: str, lookup: TextLookup, positives: Outcomes) -> Ranking | None:
    """Queries of the senders with earlier positives, candidates from the split's positives."""
    code = SPLIT_CODES[split]
    inside = positives.take(positives.code == code)
    warm = np.isin(inside.sender, positives.sender[positives.code < code])
    if not warm.any():
        return None
    candidates = np.unique(inside.receiver)
    return _ranking(inside.take(warm), candidates, split, lookup, positives)


def _ranking(
    queries: Outcomes,
    candidates: np.ndarray,
    split: str,
    lookup: TextLookup,
    positives: Outcomes,
) -> Ranking:
    """Joins rows, ordered by time, to one query per sender."""
    sender, first = np.unique(queries.sender, return_index=True)
    t = queries.t[first]
    earlier = positives.take(positives.code < SPLIT_CODES[split])
    start = int(t[t != NO_TIME].min()) if (t != NO_TIME).any() else NO_TIME
    return Ranking(
        sender=sender.astype(np.int32),
        t=t,
        sender_text=with_pointer(queries.sender_text[first], lookup.sender, sender, t),
        sender_resume=with_pointer(queries.sender_resume[first], lookup.resume, sender, t),
        relevant=linked_to(sender, queries.sender, queries.receiver),
        excluded=linked_to(sender, earlier.sender, earlier.receiver),
        candidates=candidates.astype(np.int32),
        candidate_text=_candidate_text(lookup.receiver, candidates.astype(np.int64), start),
    )


def linked_to(
    queries: Int[np.ndarray, " Q"], one: Int[np.ndarray, " M"], other: Int[np.ndarray, " M"]
) -> list[np.ndarray]:
    """Of each query among the ones, the different others that it is linked to, in order.

    Args:
      queries: Nodes.
      one: Of every link the node that may be a query,
      other: and the node at its other end.
    """
    ones, others = np.unique(np.stack([one, other]), axis=1)
    low = np.searchsorted(ones, queries, side="left")
    high = np.searchsorted(ones, queries, side="right")
    return [others[a:b].astype(np.int32) for a, b in zip(low, high, strict=True)]


def _candidate_text(known: Versions, candidates: np.ndarray, start: int) -> np.ndarray:
    """The text at the split's first query; the first one of a candidate that came later.

    One text serves all queries, so that having one says nothing about the label.
    """
    at_start = text_as_of(known, candidates, np.full(len(candidates), start, np.int64))
    first = text_as_of(known, candidates, np.full(len(candidates), NO_TIME, np.int64))
    return np.where(at_start != NO_TEXT, at_start, first).astype(np.int32)
