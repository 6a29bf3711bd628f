"""Exact area under the ROC curve: ranks with ties, interval with clustered examples, the curve."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import stats


class AucInterval(NamedTuple):
    """An area and the interval that covers it with the asked level."""

    auc: float
    low: float
    high: float
    standard_error: float


class Placements(NamedTuple):
    """The area, and by how much each example moves it away from its expectation."""

    auc: float
    influence: Float[np.ndarray, " B"]


class RocCurve(NamedTuple):
    """Corners of the curve from (0, 0) to (1, 1); tied scores make one diagonal step."""

    false_positive_rate: Float[np.ndarray, " P"]
    true_positive_rate: Float[np.ndarray, " P"]


def roc_auc(labels: Bool[np.ndarray, " B"], scores: Float[np.ndarray, " B"]) -> float:
    """Probability that a positive outranks a negative; a tie counts one half.

    Raises:
      ValueError: A score is not finite, or one of the two classes is empty.
    """
    num_positives, num_negatives = _check(labels, scores)
    rank_sum = stats.rankdata(scores)[labels].sum()
    return float(
        (rank_sum - num_positives * (num_positives + 1) / 2) / (num_positives * num_negatives)
    )


def placements(labels: Bool[np.ndarray, " B"], scores: Float[np.ndarray, " B"]) -> Placements:
    """Structural components of the area (DeLong et al. 1988), centred and scaled per example.

    The variance of the area is the sum of their squares when examples are independent.

    Raises:
      ValueError: As `roc_auc`.
    """
    num_positives, num_negatives = _check(labels, scores)
    overall = stats.rankdata(scores)
    influence = np.empty(len(scores), np.float64)
    # How many of the other class lie below (ties: half of them), as a share.
    influence[labels] = (overall[labels] - stats.rankdata(scores[labels])) / num_negatives
    influence[~labels] = 1 - (overall[~labels] - stats.rankdata(scores[~labels])) / num_positives
    auc = float(influence[labels].mean())
    influence -= auc
    influence[labels] /= num_positives
    influence[~labels] /= num_negatives
    return Placements(auc, influence)


def clustered_variance(
    labels: Bool[np.ndarray, " B"],
    influence: Float[np.ndarray, " B"],
    clusters: Shaped[np.ndarray, " B"],
) -> float:
    """Variance of an area, or of a difference of areas, whose examples come in clusters.

    Obuchowski (1997), eq. 4-7; with one example per cluster it is DeLong's. Infinite when a class
    has fewer than two clusters.

    Args:
      labels: True for positives.
      influence: From `placements`; for a difference, the difference of two.
      clusters: Whose example it is; those of one member are not independent.
    """
    index = np.unique(clusters, return_inverse=True)[1]
    num_clusters = int(index.max()) + 1
    of_positives, of_negatives = (
        np.bincount(index[chosen], influence[chosen], num_clusters) for chosen in (labels, ~labels)
    )
    with_positives, with_negatives = (len(np.unique(index[chosen])) for chosen in (labels, ~labels))
    if min(with_positives, with_negatives) < 2:
        return float("inf")
    return max(
        0.0,  # The covariance is estimated on its own and may outweigh the two variances.
        with_positives / (with_positives - 1) * float(of_positives @ of_positives)
        + with_negatives / (with_negatives - 1) * float(of_negatives @ of_negatives)
        + 2 * num_clusters / (num_clusters - 1) * float(of_positives @ of_negatives),
    )


def auc_interval(
    labels: Bool[np.ndarray, " B"],
    scores: Float[np.ndarray, " B"],
    clusters: Shaped[np.ndarray, " B"],
    level: float,
) -> AucInterval:
    """The area with an interval that respects clusters; [0, 1] where a class has one cluster.

    Args:
      labels: True for positives.
      scores: Higher means more likely positive.
      clusters: Whose example it is.
      level: Coverage, such as 0.95.
    """
    auc, influence = placements(labels, scores)
    error = clustered_variance(labels, influence, clusters) ** 0.5
    margin = normal_quantile(level) * error
    return AucInterval(auc, max(0.0, auc - margin), min(1.0, auc + margin), error)


def normal_quantile(level: float) -> float:
    """Half width, in standard errors, of a two-sided normal interval."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, needed a share between 0 and 1 such as 0.95")
    return float(stats.norm.ppf(0.5 + level / 2))


def roc_curve(labels: Bool[np.ndarray, " B"], scores: Float[np.ndarray, " B"]) -> RocCurve:
    """The curve whose trapezoid area is `roc_auc`."""
    num_positives, num_negatives = _check(labels, scores)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)  # Last of each tie.
    true_positives = np.cumsum(labels[order])[ends]
    false_positives = ends + 1 - true_positives
    return RocCurve(
        np.concatenate([[0.0], false_positives / num_negatives]),
        np.concatenate([[0.0], true_positives / num_positives]),
    )


def _check(labels: Bool[np.ndarray, " B"], scores: Float[np.ndarray, " B"]) -> tuple[int, int]:
    if not np.all(np.isfinite(scores)):
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"score {bad} of {len(scores)} is {scores[bad]}, needed finite scores")
    num_positives = int(labels.sum())
    if num_positives in (0, len(labels)):
        raise ValueError(
            f"{num_positives} of {len(labels)} labels are positive, needed both classes"
        )
    return num_positives, len(labels) - num_positives
