"""AUC by cohort: is one group of members served worse than the others."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import stats

from star_jax.evaluation.auc import AucInterval, auc_interval
from star_jax.evaluation.significance import holm

CROSS = " × "  # noqa: RUF001 # The sign of a cross, in names that people read.


class Cohort(NamedTuple):
    """One group against all others of its column."""

    column: str
    value: str
    num_members: int
    num_pairs: int
    auc: AucInterval
    rest: AucInterval
    p_value: float
    """That the true gap is within the bound, adjusted for all cohorts tested together."""

    @property
    def gap(self) -> float:
        """AUC of the group minus that of the rest."""
        return self.auc.auc - self.rest.auc


class CohortTable(NamedTuple):
    """The cohorts large enough to show, and how many were not, per column."""

    cohorts: list[Cohort]
    suppressed: dict[str, int]

    def unfair(self, level: float) -> list[Cohort]:
        """Cohorts whose gap is beyond the bound with that confidence."""
        return [cohort for cohort in self.cohorts if cohort.p_value < 1 - level]


def cohort_table(
    labels: Bool[np.ndarray, " B"],
    scores: Float[np.ndarray, " B"],
    members: Shaped[np.ndarray, " B"],
    columns: Mapping[str, Sequence[str]],
    *,
    min_members: int,
    max_relative_gap: float,
    level: float,
) -> CohortTable:
    """AUC of every cohort and of everybody else, with intervals and a test of the gap.

    Args:
      labels: True for positives.
      scores: Higher means more likely positive.
      members: Whose pair it is: the unit of independence.
      columns: Cohort of each pair, per column; "" where unknown, which is no cohort.
      min_members: Smaller cohorts are counted but not shown: they would name their members.
      max_relative_gap: Gap allowed, as a share of the AUC of the rest.
      level: Coverage of the intervals.
    """
    found: list[Cohort] = []
    suppressed: dict[str, int] = {}
    for column, values in columns.items():
        named = np.asarray(values, dtype=np.str_)
        suppressed[column] = 0
        for value in np.unique(named[named != ""]):
            inside, outside = named == value, (named != value) & (named != "")
            if too_small(labels, members, inside, min_members) or too_small(
                labels, members, outside, min_members
            ):
                suppressed[column] += 1
                continue
            auc, rest = (
                auc_interval(labels[rows], scores[rows], members[rows], level)
                for rows in (inside, outside)
            )
            num_members = len(np.unique(members[inside]))
            p_value = _p_value(auc, rest, max_relative_gap)
            found.append(
                Cohort(column, str(value), num_members, int(inside.sum()), auc, rest, p_value)
            )
    adjusted = holm(np.asarray([cohort.p_value for cohort in found], np.float64))
    cohorts = [c._replace(p_value=float(p)) for c, p in zip(found, adjusted, strict=True)]
    return CohortTable(cohorts, suppressed)


def crosses(columns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Every pair of columns as one: FEMALE and Urgent become "FEMALE × Urgent"."""  # noqa: RUF002
    names = list(columns)
    return {
        f"{one}{CROSS}{other}": [
            f"{a}{CROSS}{b}" if a and b else ""
            for a, b in zip(columns[one], columns[other], strict=True)
        ]
        for i, one in enumerate(names)
        for other in names[i + 1 :]
    }


def too_small(
    labels: Bool[np.ndarray, " B"],
    members: Shaped[np.ndarray, " B"],
    rows: Bool[np.ndarray, " B"],
    min_members: int,
) -> bool:
    """Whether a group is not shown: by the members of the rarer class, as an AUC stands on those."""
    return any(len(np.unique(members[rows & which])) < min_members for which in (labels, ~labels))


def _p_value(auc: AucInterval, rest: AucInterval, max_relative_gap: float) -> float:
    """One-sided: cohort and rest have no member in common, so their errors add."""
    beyond = abs(auc.auc - rest.auc) - max_relative_gap * rest.auc
    error = (auc.standard_error**2 + rest.standard_error**2) ** 0.5
    if error == 0:
        return 0.0 if beyond > 0 else 1.0
    return float(stats.norm.sf(beyond / error))
