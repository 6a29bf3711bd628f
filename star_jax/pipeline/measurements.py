"""From scores to what a report says: metrics, intervals, gains, calibration, cohorts."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from star_jax.evaluation.calibration import (
    NATURAL_PRIOR_SHIFT,
    Calibration,
    calibration,
    rate_weights,
    weighted_calibration,
)
from star_jax.evaluation.cohorts import CohortTable, cohort_table, crosses
from star_jax.evaluation.metrics import kinds, pair_intervals, pair_metrics, rounded, rows_of
from star_jax.evaluation.significance import Difference, auc_difference, holm, mean_difference
from star_jax.pipeline.scored import Scored
from star_jax.pipeline.text_calibration import TextCalibration


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """How uncertainty, calibration and fairness are measured."""

    level: float = 0.95  # Coverage of every interval.
    calibration_bins: int = 15  # Of equal mass.
    prior_shift: float = NATURAL_PRIOR_SHIFT  # Calibration is also shown at this other rate.
    min_cohort_members: int = 20  # Smaller cohorts are not shown.
    max_cohort_gap: float = 0.05  # AUC that a cohort may lack, as a share of the others' AUC.

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"level {self.level} must be a share between 0 and 1 such as 0.95")
        if self.calibration_bins < 1:
            raise ValueError(f"calibration_bins {self.calibration_bins} must be >= 1")
        if self.min_cohort_members < 2:
            raise ValueError(f"min_cohort_members {self.min_cohort_members} must be >= 2")
        if not self.max_cohort_gap >= 0:
            raise ValueError(f"max_cohort_gap {self.max_cohort_gap} must be >= 0")


def metrics_of(scored: Scored, methods: Sequence[str]) -> dict[str, dict[str, float]]:
    """All metrics of each method, under the names that reference numbers have."""
    return {
        name: rounded(
            pair_metrics(scored.pairs, scored.scores[name])
            | (scored.queries[name].means() if name in scored.queries else {})
            | scored.senders.get(name, {})
        )
        for name in methods
    }


def intervals_of(
    scored: Scored, methods: Sequence[str], config: MeasureConfig
) -> dict[str, dict[str, list[float]]]:
    """Lower and upper end for every AUC."""
    return {
        name: {
            metric: [round(interval.low, 4), round(interval.high, 4)]
            for metric, interval in pair_intervals(
                scored.pairs, scored.scores[name], config.level
            ).items()
        }
        for name in methods
    }


def gains_of(
    scored: Scored, versus: Sequence[tuple[str, str]], config: MeasureConfig
) -> list[dict[str, Any]]:
    """How much one method gains over another, per kind of negative and per ranking metric.

    Args:
      scored: Scores of all methods named.
      versus: (Better one, other one).
      config: Level of the intervals; p-values are adjusted for all these tests together.
    """
    found: list[tuple[str, str, str, Difference]] = []
    for one, other in versus:
        for kind in kinds(scored.pairs):
            rows = rows_of(scored.pairs, kind)
            labels, clusters = scored.pairs.label[rows], scored.pairs.sender[rows]
            first, second = scored.scores[one][rows], scored.scores[other][rows]
            difference = auc_difference(labels, first, second, clusters, config.level)
            found.append((one, other, f"auc_{kind}", difference))
        if one in scored.queries and other in scored.queries:
            columns = scored.queries[other].columns()
            for metric, values in scored.queries[one].columns().items():
                difference = mean_difference(values, columns[metric], config.level)
                found.append((one, other, metric, difference))
    adjusted = holm(np.asarray([difference.p_value for *_, difference in found], np.float64))
    return [
        {
            "model": one,
            "over": other,
            "metric": metric,
            "gain": round(gain.difference, 4),
            "interval": [_number(gain.low), _number(gain.high)],
            "p_value": float(p_value),
        }
        for (one, other, metric, gain), p_value in zip(found, adjusted, strict=True)
    ]


def calibration_of(
    scored: Scored, methods: Sequence[str], config: MeasureConfig
) -> dict[str, dict[str, Any]]:
    """Calibration on the first kind of negative, at the rate of the pairs and at the other rate."""
    rows = rows_of(scored.pairs, kinds(scored.pairs)[0])
    return {
        name: {
            rate: _calibration(scored, name, rows, shift, config.calibration_bins)
            for rate, shift in (("as_sampled", 0.0), ("shifted", config.prior_shift))
        }
        for name in methods
    }


def calibrated_of(
    scored: Scored, method: str, calibration: TextCalibration, config: MeasureConfig
) -> dict[str, Any]:
    """As one rate of `calibration_of`: calibrated predictions at the prior they are meant for."""
    rows = rows_of(scored.pairs, kinds(scored.pairs)[0])
    labels = scored.pairs.label[rows]
    logits = calibration.logits(scored.scores[method][rows])
    weights = rate_weights(labels, calibration.prior)
    found = weighted_calibration(labels, logits, weights, config.calibration_bins)
    return {"prior": calibration.prior} | _calibration_json(calibration.shift, found)


def cohorts_of(
    scored: Scored,
    methods: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    config: MeasureConfig,
) -> dict[str, dict[str, Any]]:
    """AUC by cohort and by every cross of two, on the first kind of negative.

    Args:
      scored: Scores of all methods named.
      methods: Which of them.
      columns: Cohort of each sender, per column, by index of the sender; "" where unknown.
      config: Minimum size and allowed gap.
    """
    rows = rows_of(scored.pairs, kinds(scored.pairs)[0])
    senders = scored.pairs.sender[rows]
    of_pairs = {
        column: np.asarray(values, dtype=np.str_)[senders].tolist()
        for column, values in columns.items()
    }
    found: dict[str, dict[str, Any]] = {}
    for name in methods:
        table = cohort_table(
            scored.pairs.label[rows],
            scored.scores[name][rows],
            senders,
            of_pairs | crosses(of_pairs),
            min_members=config.min_cohort_members,
            max_relative_gap=config.max_cohort_gap,
            level=config.level,
        )
        found[name] = _cohort_json(table, config)
    return found


def _calibration(
    scored: Scored, name: str, rows: np.ndarray, shift: float, num_bins: int
) -> dict[str, Any]:
    found = calibration(scored.pairs.label[rows], scored.scores[name][rows], shift, num_bins)
    return _calibration_json(shift, found)


def _calibration_json(shift: float, found: Calibration) -> dict[str, Any]:
    return {
        "prior_shift": shift,
        "ece": _number(found.expected_error),
        "log_loss": _number(found.log_loss),
        "slope": _number(found.slope),
        "intercept": _number(found.intercept),
        "bins": {
            "predicted": [round(float(value), 6) for value in found.bins.predicted],
            "observed": [round(float(value), 6) for value in found.bins.observed],
            "mass": [round(float(value), 6) for value in found.bins.mass],
        },
    }


def _cohort_json(table: CohortTable, config: MeasureConfig) -> dict[str, Any]:
    unfair = set(table.unfair(config.level))
    return {
        "suppressed": table.suppressed,
        "cohorts": [
            {
                "column": cohort.column,
                "value": cohort.value,
                "num_members": cohort.num_members,
                "num_pairs": cohort.num_pairs,
                "auc": round(cohort.auc.auc, 4),
                "interval": [round(cohort.auc.low, 4), round(cohort.auc.high, 4)],
                "gap": round(cohort.gap, 4),
                "p_value": cohort.p_value,
                "beyond_bound": cohort in unfair,
            }
            for cohort in table.cohorts
        ],
    }


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity: None says that there is no such number."""
    return round(value, 4) if math.isfinite(value) else None
