import numpy as np
import pytest

from star_jax.evaluation.auc import roc_auc
from star_jax.evaluation.calibration import NATURAL_PRIOR_SHIFT, prior_shift, rate_weights
from star_jax.evaluation.metrics import LabelledPairs
from star_jax.pipeline.measurements import MeasureConfig, calibrated_of
from star_jax.pipeline.scored import Scored
from star_jax.pipeline.text_calibration import (
    TextCalibration,
    fit_calibration,
    positive_rate,
    read_calibration,
    write_calibration,
)
from star_jax.pipeline.text_pairs import PairRecords


def sampled(num, slope, intercept, rate, seed=0):
    """Pairs sampled at a rate from a world where log-odds are known; what a scorer says of them.

    The scorer's logit x is such that the true log-odds at a rate of 1/17 are
    slope * (x + shift) + intercept, with shift = the one from `rate` to 1/17.
    """
    rng = np.random.default_rng(seed)
    positives = rng.random(num) < rate
    logits = rng.normal(np.where(positives, 1.0, -1.0), 1.4)  # True log-odds: 2 x / 1.4 ** 2 + c.
    truth = 2 * logits / 1.4**2 + np.log(rate / (1 - rate))
    return (
        positives,
        (truth - np.log(rate / (1 - rate)) - np.log(1 / 16) - intercept) / slope,
        truth,
    )


def test_the_shift_of_the_paper():
    assert prior_shift(1 / 17, 1 / 2) == pytest.approx(-2.7726, abs=5e-5)
    assert prior_shift(1 / 17, 1 / 2) == pytest.approx(NATURAL_PRIOR_SHIFT)
    assert prior_shift(0.3, 0.3) == 0.0


def test_weights_give_the_prior():
    labels = np.arange(30) < 10
    weights = rate_weights(labels, 1 / 17)
    assert np.average(labels, weights=weights) == pytest.approx(1 / 17)
    assert (weights[labels] == 1).all()


def test_the_rate_is_that_of_drawn_batches():
    """Groups of many sizes, drawn over and over."""
    rng = np.random.default_rng(1)
    # (Positives, negatives, mined negatives) of each group.
    sizes = [(1, 1, 2), (1, 5, 0), (3, 4, 1), (1, 0, 3), (2, 1, 0)]
    group = np.concatenate([np.full(sum(counts), i) for i, counts in enumerate(sizes)])
    label = np.concatenate([np.repeat([1, 0, 0], counts) for counts in sizes])
    hard = np.concatenate([np.repeat([False, False, True], counts) for counts in sizes])
    none = np.zeros(len(group), np.int32)
    pairs = PairRecords(
        none,
        none,
        label.astype(np.int8),
        group.astype(np.int32),
        none,
        none,
        none,
        hard,
        np.full(len(group), np.nan, np.float32),
    )
    counts = np.zeros(2)
    for _ in range(4_000):
        for i in range(len(sizes)):
            first, *others = label[(group == i) & ~hard]
            drawn = rng.choice(others, min(2, len(others)), replace=False) if others else []
            counts += np.bincount([first, *np.asarray(drawn, int)], minlength=2)
            counts[0] += min(2, sizes[i][2])
    expected = 3.0 * counts[1] / (3.0 * counts[1] + counts[0])
    assert positive_rate(pairs, 2, 2, 3.0) == pytest.approx(expected, abs=5e-3)
    even = PairRecords(*(column[:10] for column in pairs))
    assert positive_rate(even, 1, 0, 1.0) == 0.5


@pytest.mark.parametrize("rate", [0.5, 0.25])
def test_the_line_is_found_again_whatever_the_rate_of_the_val_pairs(rate):
    labels, logits, _ = sampled(40_000, 1.6, 0.4, rate)
    logits = logits - prior_shift(1 / 17, 2 / 3)
    found = fit_calibration(labels, logits, prior=1 / 17, positive_rate=2 / 3)
    shifted = logits + found.shift
    assert found.num_pairs == 40_000
    # Log-odds at the prior by Bayes' rule from those at the rate of the pairs.
    at_prior = sampled(40_000, 1.6, 0.4, rate)[2] + np.log(1 / 16) - np.log(rate / (1 - rate))
    slope, intercept = np.polyfit(shifted, at_prior, 1)
    assert found.slope == pytest.approx(slope, rel=0.03)
    assert found.intercept == pytest.approx(intercept, abs=0.15)
    np.testing.assert_allclose(found.logits(logits), at_prior, atol=0.3)
    assert roc_auc(labels, found.logits(logits)) == pytest.approx(roc_auc(labels, logits), abs=1e-9)


@pytest.mark.parametrize("logits", [[3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 1.0, 3]])
def test_no_line_that_would_change_the_order(logits, caplog):
    labels = np.array([True, True, False, False])
    found = fit_calibration(labels, np.array(logits), prior=1 / 17, positive_rate=0.5)
    assert (found.slope, found.intercept, found.num_pairs) == (1.0, 0.0, 0)
    np.testing.assert_allclose(found.logits(np.array(logits)), np.array(logits) - np.log(16))
    assert "no rising line fits the 4 val pairs (2 positive)" in caplog.text


def test_it_is_read_back(tmp_path):
    assert read_calibration(tmp_path) is None
    kept = TextCalibration(
        prior=0.1, positive_rate=0.5, shift=-2.0, slope=0.5, intercept=1.0, num_pairs=7
    )
    write_calibration(tmp_path, kept)
    assert read_calibration(tmp_path) == kept
    np.testing.assert_allclose(kept.logits(np.array([4.0])), [2.0])


def test_calibrated_predictions_are_measured_as_calibrated():
    labels, logits, _ = sampled(40_000, 0.7, -0.3, 0.5, seed=2)
    half = np.arange(len(labels)) % 2 == 0
    found = fit_calibration(labels[half], logits[half], prior=1 / 17, positive_rate=0.5)
    kinds = np.where(labels[~half], "", "uniform")
    pairs = LabelledPairs(labels[~half], kinds, np.arange((~half).sum()), {})
    measured = calibrated_of(
        Scored(pairs, {"text": logits[~half]}, {}, {}), "text", found, MeasureConfig()
    )
    assert measured["slope"] == pytest.approx(1.0, abs=0.05)
    assert measured["intercept"] == pytest.approx(0.0, abs=0.1)
    assert measured["ece"] < 0.01
    assert measured["prior_shift"] == pytest.approx(NATURAL_PRIOR_SHIFT)
    assert np.average(measured["bins"]["observed"], weights=measured["bins"]["mass"]) == (
        pytest.approx(1 / 17, abs=1e-3)
    )
