"""What two versions have in common without any consumer: alignment, neighbours, a mixed index."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from star_jax.evaluation.alignment import Agreement
from star_jax.evaluation.neighbours import nearest, overlap
from star_jax.evaluation.ranking import query_metrics
from star_jax.pipeline.consumers.check import Pair
from star_jax.pipeline.consumers.questions import Asked
from star_jax.pipeline.consumers.versions import Ends, Version
from star_jax.pipeline.tables.read import Ranking, read_ranking

NUM_NEIGHBOURS = 10
OVERLAP = f"overlap@{NUM_NEIGHBOURS}"
_COLUMNS = (
    "table",
    "num_rows",
    "missing_rows",
    "num_sampled",
    "alignment_error",
    "relative_alignment_error",
    f"{OVERLAP}_new",
    f"{OVERLAP}_served",
)
_QUERY_ROWS = 256  # Queries against all candidates at a time.


def spaces(pair: Pair, num_sampled: int, seed: int) -> list[dict[str, Any]]:
    """A row per table of the old version; None where both have too few rows for neighbours.

    Args:
      pair: The versions.
      num_sampled: Rows whose neighbours are compared, among all rows that both versions have;
        the alignment is that of all rows.
      seed: Of the sample.
    """
    found = []
    for name in pair.old.sizes:
        before, after = pair.old.keys(name), pair.new.keys(name)
        keys = np.intersect1d(before, after, assume_unique=True)
        row: dict[str, Any] = dict.fromkeys(_COLUMNS)
        row |= {
            "table": name,
            "num_rows": len(keys),
            "missing_rows": round(1 - len(keys) / max(len(before), 1), 4),
        }
        enough = len(keys) > NUM_NEIGHBOURS
        found.append(row | _space(pair, name, keys, num_sampled, seed) if enough else row)
    return found


def _space(
    pair: Pair, name: str, keys: Int64[np.ndarray, " K"], num_sampled: int, seed: int
) -> dict[str, Any]:
    rows = np.random.default_rng(seed).permutation(len(keys))[:num_sampled]

    def neighbours(version: Version) -> Int64[np.ndarray, "Q K"]:
        queries = version.vectors(name, keys[rows])
        return nearest(queries, rows, version.blocks(name, keys), NUM_NEIGHBOURS)

    before = neighbours(pair.old)
    shared = {
        which: overlap(before, neighbours(version))
        for which, version in (("new", pair.new), ("served", pair.served))
        if pair.mapped or which == "served"  # Else they are one.
    }
    aligned = Agreement(pair.old.sizes[name])
    versions = pair.served.blocks(name, keys), pair.old.blocks(name, keys)
    for served, old in zip(*versions, strict=True):
        aligned.add(served, old)
    found: dict[str, Any] = {
        "num_sampled": len(rows),
        "alignment_error": round(aligned.error, 4),
        "relative_alignment_error": round(aligned.relative_error, 4),
    }
    for which, values in shared.items():
        found[f"{OVERLAP}_{which}"] = round(float(values.mean()), 4)
    return found


class _Index(NamedTuple):
    """Whose vectors the queries and the candidates have."""

    queries: str
    candidates: str


_INDEXES = (
    _Index("old", "old"),
    _Index("old", "served"),
    _Index("served", "old"),
    _Index("served", "served"),
    _Index("new", "new"),
)


def mixed_indexes(
    asked: Asked, pair: Pair, num_queries: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Ranks by dot products, as a vector index does, with the two sides from either version.

    While a new version is rolled out, an index holds jobs of one version and is asked for members
    of the other. A row per task with test queries and per mixture.

    Args:
      asked: The tables.
      pair: The versions.
      num_queries: Of a task at most, drawn by the seed.
      seed: Of the queries.
    """
    for name, task in asked.meta.tasks.items():
        ranking = read_ranking(asked.tables, name, "test")
        sender = asked.table_of(task.sender, "sender")
        receiver = asked.table_of(task.receiver, "receiver")
        if ranking is None or sender is None or receiver is None:
            continue
        chosen = _answerable(asked, pair, ranking, (sender, receiver))
        if not len(chosen.sender):
            continue
        drawn = np.random.default_rng(seed).permutation(len(chosen.sender))[:num_queries]
        chosen = _queries(chosen, np.sort(drawn))
        for index in _INDEXES if pair.mapped else _INDEXES[:-1]:
            found = _ranked(pair, chosen, (sender, receiver), index)
            yield {"question": name, **index._asdict(), "num_queries": len(chosen.sender)} | found


def _answerable(asked: Asked, pair: Pair, ranking: Ranking, tables: tuple[str, str]) -> Ranking:
    """Queries and candidates that both versions have; queries with nothing to find are left out."""
    ends = pair.old.ranking_ends(tables, ranking)
    has_query, has_candidate = (asked.shared(each) for each in ends)
    candidates = ranking.candidates[has_candidate]
    relevant = [wanted[np.isin(wanted, candidates)] for wanted in ranking.relevant]
    rows = np.flatnonzero(has_query & np.asarray([len(wanted) > 0 for wanted in relevant], bool))
    kept = ranking._replace(
        relevant=relevant,
        candidates=candidates,
        candidate_text=ranking.candidate_text[has_candidate],
    )
    return _queries(kept, rows)


def _queries(ranking: Ranking, rows: Int64[np.ndarray, " Q"]) -> Ranking:
    return ranking._replace(
        sender=ranking.sender[rows],
        t=ranking.t[rows],
        sender_text=ranking.sender_text[rows],
        sender_resume=ranking.sender_resume[rows],
        relevant=[ranking.relevant[row] for row in rows],
        excluded=[ranking.excluded[row] for row in rows],
    )


def _ranked(
    pair: Pair, ranking: Ranking, tables: tuple[str, str], index: _Index
) -> dict[str, float]:
    asking: Version = getattr(pair, index.queries)
    asked: Version = getattr(pair, index.candidates)
    queries, candidates = pair.old.ranking_ends(tables, ranking)
    documents = _vectors(asked, candidates)
    found: dict[str, list[Float[np.ndarray, " Q"]]] = {}
    for start in range(0, len(ranking.sender), _QUERY_ROWS):
        block = slice(start, start + _QUERY_ROWS)
        scores = _vectors(asking, queries.take(block)) @ documents.T
        metrics = query_metrics(
            scores.astype(np.float64),
            ranking.candidates,
            ranking.relevant[block],
            ranking.excluded[block],
        )
        for metric, values in metrics.columns().items():
            found.setdefault(metric, []).append(values)
    return {metric: round(float(np.concatenate(v).mean()), 4) for metric, v in found.items()}


def _vectors(version: Version, ends: Ends) -> Float[np.ndarray, "N E"]:
    (table,), (keys,) = ends
    return version.vectors(table, keys)
