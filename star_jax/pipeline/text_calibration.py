"""What the scorer's logits mean: the share of positives it was trained at, and the true one.

Ranking never needs it (SPEC 14, row 26): a shift and a rising line change no order.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from star_jax import artefacts
from star_jax.config import from_json, to_json
from star_jax.evaluation.calibration import logistic_fit, prior_shift, rate_weights
from star_jax.evaluation.metrics import kinds, rows_of
from star_jax.pipeline.scored import labelled
from star_jax.pipeline.tables.read import PairTable, TaskMeta
from star_jax.pipeline.text_pairs import PairRecords, has_both_sides

FILE = "calibration.json"  # Beside the tables of an export.

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TextCalibration:
    """How a logit becomes the log-odds of a probability.

    Attributes:
      prior: True share of positives.
      positive_rate: That of the training pairs, as sampled and weighted.
      shift: Added to a logit first: ln(pi / (1 - pi)) - ln(rho / (1 - rho)).
      slope: Of the line after the shift, fitted on val pairs weighted to the prior.
      intercept: Of the same line.
      num_pairs: What the line was fitted on; 0: on nothing, it changes nothing.
    """

    prior: float
    positive_rate: float
    shift: float
    slope: float
    intercept: float
    num_pairs: int

    def logits(self, logits: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
        """Log-odds at the prior."""
        return self.slope * (np.asarray(logits, np.float64) + self.shift) + self.intercept


def positive_rate(
    pairs: PairRecords, num_negatives: int, num_hard_negatives: int, positive_weight: float
) -> float:
    """Expected share of positives in the BCE over an epoch; every group is drawn once.

    Args:
      pairs: Of training, in whole groups, at least one pair.
      num_negatives: Most pairs that join the first positive of a group, drawn if there are more.
      num_hard_negatives: Most mined negatives that join them.
      positive_weight: Of a positive in the loss.
    """
    _, group = np.unique(pairs.group, return_inverse=True)
    size = np.bincount(group, ~pairs.hard)
    positives = np.bincount(group, pairs.label == 1)
    mined = np.minimum(np.bincount(group, pairs.hard), num_hard_negatives)
    drawn = np.minimum(size - 1, num_negatives) / np.maximum(size - 1, 1)
    expected = 1.0 + drawn * (positives - 1.0)
    num_positives = positive_weight * expected.sum()
    num_others = (drawn * (size - positives) + mined).sum()
    return float(num_positives / (num_positives + num_others))


def val_rows(
    pairs: PairTable, records: PairRecords, task: TaskMeta, max_pairs: int
) -> Int[np.ndarray, " V"]:
    """Val pairs with texts on both sides, against the first kind of negative; at most so many.

    Args:
      pairs: Of the val split.
      records: The same pairs.
      task: Of them.
      max_pairs: A draw of them where there are more.
    """
    if not (pairs.label == 0).any():
        return np.zeros(0, np.int64)
    marked = labelled(pairs, task)
    compared = rows_of(marked, kinds(marked)[0])
    both = has_both_sides(records.document, records.profile, records.resume)
    rows = np.flatnonzero(compared & both)
    if len(rows) <= max_pairs:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, max_pairs, replace=False))


def fit_calibration(
    labels: Bool[np.ndarray, " V"],
    logits: Float[np.ndarray, " V"],
    *,
    prior: float,
    positive_rate: float,
) -> TextCalibration:
    """The shift, and the line through val pairs where there is one that keeps their order.

    Args:
      labels: True for positives.
      logits: As the scorer gives them.
      prior: True share of positives.
      positive_rate: Of the training pairs.
    """
    shift = prior_shift(prior, positive_rate)
    slope, intercept, num_pairs = 1.0, 0.0, 0
    if 0 < int(labels.sum()) < len(labels):
        shifted = np.asarray(logits, np.float64) + shift
        fitted = logistic_fit(labels, shifted, rate_weights(labels, prior))
        if np.isfinite(fitted).all() and fitted[1] > 0:
            (intercept, slope), num_pairs = fitted, len(labels)
    if not num_pairs:
        _log.warning(
            "no rising line fits the %d val pairs (%d positive): logits are shifted alone",
            len(labels),
            int(labels.sum()),
        )
    return TextCalibration(
        prior=prior,
        positive_rate=positive_rate,
        shift=shift,
        slope=slope,
        intercept=intercept,
        num_pairs=num_pairs,
    )


def write_calibration(folder: Path, calibration: TextCalibration) -> None:
    """Writes it into an export."""
    artefacts.write_text(folder / FILE, to_json(calibration))


def read_calibration(folder: Path) -> TextCalibration | None:
    """Of an export; None where its model was not trained, so that its logits mean nothing."""
    path = folder / FILE
    if not path.is_file():
        return None
    return from_json(TextCalibration, path.read_text(encoding="utf-8"))
