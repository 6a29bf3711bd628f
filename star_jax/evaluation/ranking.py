"""Ranking metrics over a list of candidates: recall@k and NDCG@k, exact also under ties."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

RECALL_AT = (10, 100)
NDCG_AT = 10


class QueryMetrics(NamedTuple):
    """One value per query; a metric of the set is the mean over its queries."""

    recall_10: Float[np.ndarray, " Q"]
    recall_100: Float[np.ndarray, " Q"]
    ndcg_10: Float[np.ndarray, " Q"]

    def columns(self) -> dict[str, Float[np.ndarray, " Q"]]:
        """The values under the names that a report gives them."""
        return {
            "recall@10": self.recall_10,
            "recall@100": self.recall_100,
            "ndcg@10": self.ndcg_10,
        }

    def means(self) -> dict[str, float]:
        """The metrics of the set."""
        return {name: float(values.mean()) for name, values in self.columns().items()}


def query_metrics(
    scores: Float[np.ndarray, "Q C"],
    candidates: Int[np.ndarray, " C"],
    relevant: Sequence[Int[np.ndarray, " _"]],
    excluded: Sequence[Int[np.ndarray, " _"]],
) -> QueryMetrics:
    """Ranks all candidates of each query but the excluded ones.

    Tied candidates are in random order, and the value is its expectation: no result depends on
    the order in which candidates are stored. Recall divides by the number of relevant candidates.

    Args:
      scores: Higher ranks first.
      candidates: Distinct receivers, one per column.
      relevant: Receivers that each query should find; all must be candidates.
      excluded: Receivers that each query leaves out; a relevant one stays in.

    Raises:
      ValueError: A score is not finite, or a relevant receiver is no candidate.
    """
    if not np.all(np.isfinite(scores)):
        query, column = (int(i[0]) for i in np.nonzero(~np.isfinite(scores)))
        raise ValueError(
            f"the score of query {query} and candidate {candidates[column]} is "
            f"{scores[query, column]}, needed finite scores"
        )
    order = np.argsort(candidates, kind="stable")
    rows = [
        _one_query(row, *_columns(query, candidates, order, wanted, left_out))
        for query, (row, wanted, left_out) in enumerate(
            zip(scores, relevant, excluded, strict=True)
        )
    ]
    recall_10, recall_100, ndcg_10 = np.asarray(rows, np.float64).reshape(-1, 3).T
    return QueryMetrics(recall_10, recall_100, ndcg_10)


def _columns(
    query: int,
    candidates: Int[np.ndarray, " C"],
    order: Int[np.ndarray, " C"],
    wanted: Int[np.ndarray, " K"],
    left_out: Int[np.ndarray, " X"],
) -> tuple[Int[np.ndarray, " R"], Int[np.ndarray, " A"]]:
    """Columns of the relevant candidates, and of all that are ranked."""
    receivers = np.unique(wanted)
    if not len(receivers):
        raise ValueError(f"query {query} has no relevant receiver, needed at least one")
    at = np.searchsorted(candidates[order], receivers)
    found = order[np.minimum(at, len(order) - 1)]
    if not np.array_equal(candidates[found], receivers):
        missing = receivers[candidates[found] != receivers][0]
        raise ValueError(f"receiver {missing}, relevant to query {query}, is no candidate")
    left_in = ~np.isin(candidates, np.setdiff1d(left_out, receivers))
    return found, np.flatnonzero(left_in)


def _one_query(
    scores: Float[np.ndarray, " C"], found: Int[np.ndarray, " R"], ranked: Int[np.ndarray, " A"]
) -> tuple[float, float, float]:
    ascending = np.sort(scores[ranked])
    below = np.searchsorted(ascending, scores[found], side="left")
    up_to = np.searchsorted(ascending, scores[found], side="right")
    above = len(ascending) - up_to  # Rank of the first place of the tie, from 0.
    tied = up_to - below
    recall = [float(np.mean(np.clip((k - above) / tied, 0.0, 1.0))) for k in RECALL_AT]
    # (2^rel - 1) / log2(rank + 1) with rel = 1, summed over the places of a tie.
    discount = np.zeros(len(ascending) + 1)
    places = min(NDCG_AT, len(ascending))
    discount[1 : places + 1] = 1 / np.log2(np.arange(places) + 2)
    gained = np.cumsum(discount)
    gain = (gained[above + tied] - gained[above]) / tied
    ideal = float(gained[len(found)])
    return recall[0], recall[1], float(gain.sum()) / ideal
