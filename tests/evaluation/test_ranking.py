import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.evaluation.ranking import query_metrics


def by_definition(order, relevant):
    """Recall@10, recall@100 and NDCG@10 of one ranked list, from their textbook formulas."""
    hits = [int(item in relevant) for item in order]
    dcg = sum((2**h - 1) / np.log2(rank + 1) for rank, h in enumerate(hits[:10], start=1))
    ideal = sum(1 / np.log2(rank + 1) for rank in range(1, min(len(relevant), 10) + 1))
    return sum(hits[:10]) / len(relevant), sum(hits[:100]) / len(relevant), dcg / ideal


def one_query(scores, candidates, relevant, excluded):
    found = query_metrics(
        np.asarray(scores, float)[None],
        np.asarray(candidates),
        [np.asarray(relevant)],
        [np.asarray(excluded, int)],
    )
    return [float(column[0]) for column in found]


def test_distinct_scores_give_the_textbook_values():
    rng = np.random.default_rng(0)
    candidates = rng.permutation(300)[:150]
    for _ in range(20):
        scores = rng.permutation(150).astype(float)
        relevant = candidates[rng.choice(150, rng.integers(1, 25), replace=False)]
        excluded = rng.choice(400, 60, replace=False)
        left_out = set(excluded.tolist()) - set(relevant.tolist())
        order = [c for c in candidates[np.argsort(-scores)] if c not in left_out]
        expected = by_definition(order, set(relevant.tolist()))
        measured = one_query(scores, candidates, relevant, excluded)
        assert measured == pytest.approx(expected, abs=1e-12)


def test_ties_give_the_mean_over_all_their_orders():
    scores = [5, 4, 4, 4, 4, 3, 9, 9, 9, 9, 9, 9, 9]  # Place 10 falls inside the tie of fours.
    relevant, tied = [1, 3, 5], [1, 2, 3, 4]
    front = [6, 7, 8, 9, 10, 11, 12, 0]
    rounds = [
        by_definition([*front, *order, 5], set(relevant)) for order in itertools.permutations(tied)
    ]
    assert one_query(scores, range(13), relevant, []) == pytest.approx(np.mean(rounds, axis=0))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_order_of_candidates_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    candidates, scores = rng.permutation(40), rng.integers(0, 5, 40).astype(float)
    relevant, excluded = rng.choice(40, 4, replace=False), rng.choice(40, 8, replace=False)
    order = rng.permutation(40)
    one = one_query(scores, candidates, relevant, excluded)
    assert one == pytest.approx(one_query(scores[order], candidates[order], relevant, excluded))
    assert all(0 <= value <= 1 + 1e-12 for value in one)


def test_means_average_over_queries():
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    found = query_metrics(
        scores, np.arange(3), [np.array([0]), np.array([1])], [np.array([], int)] * 2
    )
    assert found.means() == pytest.approx(
        {"recall@10": 1.0, "recall@100": 1.0, "ndcg@10": (1 + 1 / np.log2(3)) / 2}
    )


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match=r"receiver 7, relevant to query 0, is no candidate"):
        one_query([1.0, 2.0], [3, 5], [7], [])
    with pytest.raises(ValueError, match=r"query 0 has no relevant receiver"):
        one_query([1.0, 2.0], [3, 5], np.array([], int), [])
    with pytest.raises(ValueError, match=r"query 0 and candidate 5 is nan, needed finite"):
        one_query([1.0, np.nan], [3, 5], [3], [])
