"""Do predicted probabilities mean what they say: expected error, reliability, prior shift."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

from star_jax.evaluation.logistic import logistic_regression

NATURAL_PRIOR_SHIFT = -2.772588722239781
"""ln(1/16): one apply among sixteen skips, for models trained on one to one (SPEC 14, row 26)."""


class ReliabilityBins(NamedTuple):
    """Mean prediction against the observed rate, per bin of equal mass."""

    predicted: Float[np.ndarray, " bins"]
    observed: Float[np.ndarray, " bins"]
    mass: Float[np.ndarray, " bins"]


class Calibration(NamedTuple):
    """How far predictions are from rates.

    `slope` and `intercept` are those of the logistic regression of the label on the logit: 1 and 0
    when calibrated, a slope below 1 when overconfident.
    """

    expected_error: float
    log_loss: float
    slope: float
    intercept: float
    bins: ReliabilityBins


def calibration(
    labels: Bool[np.ndarray, " B"],
    logits: Float[np.ndarray, " B"],
    prior_shift: float,
    num_bins: int,
) -> Calibration:
    """Measures calibration at the rate of the examples, or at another one.

    Args:
      labels: True for positives.
      logits: Predictions at the rate of the examples.
      prior_shift: Added to every logit, while each negative counts exp(-prior_shift) times: the
        examples as they would be at the other rate. 0 takes them as they are.
      num_bins: Bins of equal mass; at most one per distinct prediction is used.
    """
    weights = np.where(labels, 1.0, np.exp(-prior_shift))
    return weighted_calibration(
        labels, np.asarray(logits, np.float64) + prior_shift, weights, num_bins
    )


def weighted_calibration(
    labels: Bool[np.ndarray, " B"],
    logits: Float[np.ndarray, " B"],
    weights: Float[np.ndarray, " B"],
    num_bins: int,
) -> Calibration:
    """Measures calibration at the rate that the examples have with these weights.

    Args:
      labels: True for positives.
      logits: Predictions at that rate.
      weights: Of the examples, as `rate_weights` gives them.
      num_bins: As in `calibration`.
    """
    bins = reliability_bins(labels, special.expit(logits), weights, num_bins)
    signed = np.where(labels, logits, -logits)
    intercept, slope = logistic_fit(labels, logits, weights)
    return Calibration(
        expected_error=float(bins.mass @ np.abs(bins.predicted - bins.observed)),
        log_loss=float(-(weights @ special.log_expit(signed)) / weights.sum()),
        slope=slope,
        intercept=intercept,
        bins=bins,
    )


def prior_shift(prior: float, positive_rate: float) -> float:
    """What turns logits learned at one share of positives into those at another.

    Args:
      prior: The true share of positives.
      positive_rate: The share among the training pairs, as sampled and weighted.
    """
    return float(special.logit(prior) - special.logit(positive_rate))


def rate_weights(labels: Bool[np.ndarray, " B"], prior: float) -> Float[np.ndarray, " B"]:
    """Weights under which a share `prior` of the examples is positive; positives count once."""
    num_positives = int(labels.sum())
    num_negatives = len(labels) - num_positives
    negative = num_positives / max(num_negatives, 1) * (1 - prior) / prior
    return np.where(labels, 1.0, negative)


def reliability_bins(
    labels: Bool[np.ndarray, " B"],
    probabilities: Float[np.ndarray, " B"],
    weights: Float[np.ndarray, " B"],
    num_bins: int,
) -> ReliabilityBins:
    """Cuts the sorted predictions into bins of equal weight; equal predictions share a bin."""
    distinct, index = np.unique(probabilities, return_inverse=True)
    mass = np.bincount(index, weights)
    positives = np.bincount(index, weights * labels)
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    bin_of = np.minimum((middle * num_bins).astype(np.int64), num_bins - 1)
    total = np.bincount(bin_of, mass, num_bins)
    used = total > 0
    return ReliabilityBins(
        predicted=np.bincount(bin_of, mass * distinct, num_bins)[used] / total[used],
        observed=np.bincount(bin_of, positives, num_bins)[used] / total[used],
        mass=total[used] / total.sum(),
    )


def logistic_fit(
    labels: Bool[np.ndarray, " B"],
    logits: Float[np.ndarray, " B"],
    weights: Float[np.ndarray, " B"],
) -> tuple[float, float]:
    """Intercept and slope by Newton's method; NaN where the classes do not overlap."""
    if logits[labels].min() > logits[~labels].max() or logits[labels].max() < logits[~labels].min():
        return float("nan"), float("nan")  # The best slope is infinite.
    if np.ptp(logits) == 0:
        return float("nan"), float("nan")  # No slope is better than another.
    centre, spread = float(np.average(logits, weights=weights)), float(np.std(logits))
    design = np.stack([np.ones_like(logits), (logits - centre) / spread], axis=1)
    fitted = logistic_regression(design, labels, weights)
    slope = float(fitted[1] / spread)
    return float(fitted[0]) - slope * centre, slope
