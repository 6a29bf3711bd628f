import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from star_jax.evaluation import auc

# Few distinct scores, so that ties are common.
examples = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.bool_, n).filter(lambda labels: 0 < labels.sum() < len(labels)),
        hnp.arrays(np.float64, n, elements=st.integers(-3, 3).map(float)),
    )
)


def by_definition(labels, scores):
    positive, negative = scores[labels][:, None], scores[~labels][None, :]
    return np.mean((positive > negative) + 0.5 * (positive == negative))


@settings(deadline=None)
@given(examples)
def test_auc_is_the_share_of_ordered_pairs(example):
    labels, scores = example
    assert auc.roc_auc(labels, scores) == pytest.approx(by_definition(labels, scores), abs=1e-12)
    assert auc.placements(labels, scores).auc == pytest.approx(by_definition(labels, scores))


@settings(deadline=None)
@given(examples, st.randoms(use_true_random=False))
def test_order_of_examples_and_scale_of_scores_do_not_matter(example, random):
    labels, scores = example
    order = np.array(random.sample(range(len(labels)), len(labels)))
    expected = auc.roc_auc(labels, scores)
    assert auc.roc_auc(labels[order], scores[order]) == pytest.approx(expected, abs=1e-12)
    assert auc.roc_auc(labels, np.exp(scores / 2)) == pytest.approx(expected, abs=1e-12)
    assert auc.roc_auc(~labels, -scores) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(examples)
def test_area_under_the_curve_is_the_auc(example):
    labels, scores = example
    curve = auc.roc_curve(labels, scores)
    area = np.trapezoid(curve.true_positive_rate, curve.false_positive_rate)
    assert area == pytest.approx(by_definition(labels, scores), abs=1e-12)
    assert curve.false_positive_rate[-1] == curve.true_positive_rate[-1] == 1.0


def test_single_clusters_give_delongs_variance():
    rng = np.random.default_rng(0)
    labels, scores = rng.random(60) < 0.4, rng.integers(0, 9, 60).astype(float)
    positive, negative = scores[labels][:, None], scores[~labels][None, :]
    ordered = (positive > negative) + 0.5 * (positive == negative)
    delong = (
        ordered.mean(axis=1).var(ddof=1) / labels.sum()
        + ordered.mean(axis=0).var(ddof=1) / (~labels).sum()
    )
    influence = auc.placements(labels, scores).influence
    measured = auc.clustered_variance(labels, influence, np.arange(60))
    assert measured == pytest.approx(delong, rel=1e-12)


def clustered(rng, num_members):
    """Each member has a mood that moves all scores of that member: pairs are not independent."""
    member = np.repeat(np.arange(num_members), 4)
    labels = np.tile([True, False, False, False], num_members)
    mood = rng.standard_normal(num_members)[member]
    return labels, labels + 2 * mood + rng.standard_normal(len(member)), member


def test_clustered_interval_agrees_with_a_bootstrap_over_members():
    rng = np.random.default_rng(1)
    labels, scores, member = clustered(rng, 150)
    rounds = []
    for _ in range(600):
        rows = (rng.integers(0, 150, 150)[:, None] * 4 + np.arange(4)).reshape(-1)
        rounds.append(auc.roc_auc(labels[rows], scores[rows]))
    measured = auc.auc_interval(labels, scores, member, 0.95)
    assert measured.standard_error == pytest.approx(np.std(rounds), rel=0.1)
    alone = auc.auc_interval(labels, scores, np.arange(600), 0.95)
    assert measured.standard_error < 0.8 * alone.standard_error  # The mood cancels in a member.


def test_interval_covers_the_true_area_as_often_as_it_says():
    # P(N(1, 10) > 0): two members, two moods; one pair in sixty is of one member: P(N(1, 2) > 0).
    truth = (59 * stats.norm.cdf(1 / 10**0.5) + stats.norm.cdf(1 / 2**0.5)) / 60
    rng = np.random.default_rng(2)
    intervals = [auc.auc_interval(*clustered(rng, 60), 0.9) for _ in range(300)]
    covered = np.mean([i.low <= truth <= i.high for i in intervals])
    assert 0.84 < covered < 0.96


def test_one_cluster_says_nothing_about_the_spread():
    interval = auc.auc_interval(
        np.array([True, False, False]), np.array([2.0, 1.0, 3.0]), np.zeros(3, int), 0.95
    )
    assert (interval.auc, interval.low, interval.high) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([True, False], [np.nan, 1.0], r"score 0 of 2 is nan, needed finite scores"),
        ([True, True], [0.0, 1.0], r"2 of 2 labels are positive, needed both classes"),
        ([False], [0.0], r"0 of 1 labels are positive, needed both classes"),
    ],
)
def test_bad_scores_are_refused(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        auc.roc_auc(np.array(labels), np.array(scores))


def test_level_is_a_share():
    with pytest.raises(ValueError, match=r"level is 95.0, needed a share between 0 and 1"):
        auc.normal_quantile(95.0)
