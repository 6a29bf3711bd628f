import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.evaluation.calibration import NATURAL_PRIOR_SHIFT, calibration, reliability_bins


def logistic_examples(num, slope, intercept, seed=0):
    """Labels drawn at sigmoid(slope * logit + intercept): what the fit must find again."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, num)
    labels = rng.random(num) < 1 / (1 + np.exp(-(slope * logits + intercept)))
    return labels, logits


def test_distinct_predictions_are_cut_into_bins_of_equal_count():
    labels, logits = logistic_examples(150, 0.7, 0.3)
    order = np.argsort(logits)
    predicted = 1 / (1 + np.exp(-logits))
    expected = sum(
        len(part) / 150 * abs(predicted[part].mean() - labels[part].mean())
        for part in np.array_split(order, 15)
    )
    found = calibration(labels, logits, 0.0, 15)
    assert found.expected_error == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(found.bins.mass, 1 / 15)
    log_loss = -np.mean(np.where(labels, np.log(predicted), np.log(1 - predicted)))
    assert found.log_loss == pytest.approx(log_loss)


def test_slope_and_intercept_are_found_again():
    found = calibration(*logistic_examples(200_000, 0.6, -0.8), 0.0, 15)
    assert found.slope == pytest.approx(0.6, abs=0.01)
    assert found.intercept == pytest.approx(-0.8, abs=0.02)


def test_fit_is_a_maximum_of_the_likelihood():
    labels, logits = logistic_examples(400, 0.9, 0.5, seed=3)
    found = calibration(labels, logits, 0.0, 15)

    def loss(slope, intercept):
        return np.logaddexp(0, np.where(labels, -1, 1) * (slope * logits + intercept)).sum()

    best = loss(found.slope, found.intercept)
    for slope, intercept in [(0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)]:
        assert loss(found.slope + slope, found.intercept + intercept) > best


def test_prior_shift_equals_repeating_each_negative_sixteen_times():
    labels, logits = logistic_examples(300, 1.0, 0.0)
    copies = np.where(labels, 1, 16)
    repeated = calibration(
        np.repeat(labels, copies), np.repeat(logits + NATURAL_PRIOR_SHIFT, copies), 0.0, 15
    )
    shifted = calibration(labels, logits, NATURAL_PRIOR_SHIFT, 15)
    assert shifted.expected_error == pytest.approx(repeated.expected_error)
    assert shifted.log_loss == pytest.approx(repeated.log_loss)
    assert shifted.slope == pytest.approx(repeated.slope)
    assert shifted.intercept == pytest.approx(repeated.intercept, abs=1e-6)
    assert pytest.approx(-2.773, abs=5e-4) == NATURAL_PRIOR_SHIFT


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_order_does_not_matter_even_under_ties(seed):
    rng = np.random.default_rng(seed)
    labels, probabilities = rng.random(60) < 0.5, rng.integers(0, 6, 60) / 6
    order = rng.permutation(60)
    one = reliability_bins(labels, probabilities, np.ones(60), 15)
    other = reliability_bins(labels[order], probabilities[order], np.ones(60), 15)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b)
    assert len(one.mass) <= len(np.unique(probabilities))


def test_no_slope_where_none_is_best():
    labels = np.array([True, True, False, False])
    for logits in ([3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]):
        found = calibration(labels, np.array(logits), 0.0, 15)
        assert np.isnan(found.slope)
        assert np.isfinite(found.log_loss)
